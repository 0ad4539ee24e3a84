"""The page of a hyper-parameter sweep or an ablation, put together from its ``sweep.json``."""

from urllib.parse import quote

from qdmr_ray.evaluate.sweep_file import BEST_FILE
from qdmr_ray.report.document import render
from qdmr_ray.report.sweep import charts, parameters, summary, tables, trials
from qdmr_ray.report.sweep.data import Sweep
from qdmr_ray.report.sweep.pictures import BASELINE, ROLE_LABELS, compared_photographs
from qdmr_ray.report.viewer import viewer_content


def sweep_page(sweep: Sweep) -> str:
    """Returns the page of a sweep."""
    # The first objective against each of the others.
    fronts = [charts.draw_front(sweep, 0, index) for index in range(1, len(sweep.objectives))]
    evaluation, photographs, amplification = compared_photographs(sweep)
    compared = viewer_content(evaluation, photographs, amplification, ROLE_LABELS)
    # The slider starts between baseline and best, not between input and best.
    compared["viewer"]["left"] = BASELINE
    return render(
        "sweep.html.j2",
        styles=["report.css", "sweep.css"],
        scripts=["report.js", "sweep.js"],
        sweep=sweep,
        headline=summary.headline(sweep),
        facts=summary.facts(sweep),
        tiles=summary.tiles(sweep),
        unseen=tables.unseen_table(sweep),
        unseen_caption=tables.unseen_caption(sweep),
        seeds=tables.seed_table(sweep),
        evaluation=evaluation,
        sections=[
            {
                "objective": objective,
                "history": charts.draw_history(sweep, index),
                "curves": charts.draw_learning_curves(sweep, index),
                "slices": parameters.draw_slices(sweep, index),
                "variants": charts.draw_variants(sweep, index) if sweep.is_ablation else None,
            }
            for index, objective in enumerate(sweep.objectives)
        ],
        parallel=parameters.draw_parallel(sweep),
        shades=range(parameters.SHADES),
        without_value=sum(None in trial.values for trial in sweep.searched),
        importances=parameters.draw_importances(sweep),
        variants=tables.variant_table(sweep),
        fronts=[front for front in fronts if front],
        front_table=trials.trial_table(sweep, sweep.front),
        space=tables.space_table(sweep),
        trials=trials.trial_table(sweep, sweep.trials),
        best_file=BEST_FILE,
        best_link=f"data:text/yaml;charset=utf-8,{quote(sweep.best_text)}",
        **compared,
    )
