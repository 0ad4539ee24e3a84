"""The page of a hyper-parameter sweep or an ablation, put together from its ``sweep.json``."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from qdmr_ray.evaluate.results import Evaluation
from qdmr_ray.evaluate.sweep_file import BEST_FILE
from qdmr_ray.report.document import render
from qdmr_ray.report.pictures import Photograph
from qdmr_ray.report.run_folder import noted
from qdmr_ray.report.sweep import charts, parameters, summary, tables, trials
from qdmr_ray.report.sweep.data import Sweep
from qdmr_ray.report.sweep.pictures import BASELINE, ROLE_LABELS, compared_photographs
from qdmr_ray.report.viewer import viewer_content

NO_TRIALS: dict[str, list[Any]] = {"groups": [], "rows": []}


def sweep_page(sweep: Sweep) -> str:
    """Returns the page of a sweep. A part that cannot be shown is named under its problems."""

    def part(name: str, make: Callable[[], Any], otherwise: Any) -> Any:
        with noted(sweep.problems, name):
            return make()
        return otherwise

    def made(name: str, make: Callable[..., Any], *index: int) -> Any:
        return part(name, partial(make, sweep, *index), None)

    # The first objective against each of the others.
    others = range(1, len(sweep.objectives))
    fronts = [made("the Pareto front", charts.draw_front, 0, index) for index in others]
    return render(
        "sweep.html.j2",
        styles=["report.css", "sweep.css"],
        scripts=["report.js", "sweep.js"],
        sweep=sweep,
        headline=part("the headline", partial(summary.headline, sweep), ""),
        facts=part("the line of facts", partial(summary.facts, sweep), []),
        tiles=part("the key numbers", partial(summary.tiles, sweep), []),
        unseen=made("unseen images", tables.unseen_table),
        unseen_caption=part("unseen images", partial(tables.unseen_caption, sweep), ""),
        seeds=made("other seeds", tables.seed_table),
        sections=[
            {
                "objective": objective,
                "history": made("trials over time", charts.draw_history, index),
                "curves": made("learning curves", charts.draw_learning_curves, index),
                "slices": made("each parameter", parameters.draw_slices, index),
                "variants": made("the variants' chart", charts.draw_variants, index)
                if sweep.is_ablation
                else None,
            }
            for index, objective in enumerate(sweep.objectives)
        ],
        parallel=made("the parameters together", parameters.draw_parallel),
        shades=range(parameters.SHADES),
        without_value=sum(None in trial.values for trial in sweep.searched),
        importances=made("the importances", parameters.draw_importances),
        variants=made("the variants", tables.variant_table),
        fronts=[front for front in fronts if front],
        front_table=part(
            "the front's trials", lambda: trials.trial_table(sweep, sweep.front), NO_TRIALS
        ),
        space=part("the search space", partial(tables.space_table, sweep), []),
        trials=part("the trials", lambda: trials.trial_table(sweep, sweep.trials), NO_TRIALS),
        best_file=BEST_FILE,
        best_link=f"data:text/yaml;charset=utf-8,{quote(sweep.best_text)}",
        **part("the photographs", lambda: _compared(*compared_photographs(sweep)), _compared()),
    )


def _compared(
    evaluation: Evaluation | None = None,
    photographs: Sequence[Photograph] = (),
    amplification: int = 1,
) -> dict[str, Any]:
    """Returns the template's variables for the photographs of baseline and best."""
    compared = viewer_content(evaluation, [*photographs], amplification, ROLE_LABELS)
    # The slider starts between baseline and best, not between input and best.
    compared["viewer"]["left"] = BASELINE
    return {"evaluation": evaluation, **compared}
