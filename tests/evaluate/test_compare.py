"""Tables over several evaluations, on small ones worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdmr_ray.cli.judge import compare as command
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate.compare import Comparison, compare
from qdmr_ray.evaluate.compare_text import comparison_text, escape_latex
from qdmr_ray.evaluate.stored import StoredEvaluation, named_apart, read_evaluations
from qdmr_ray.storage import open_location

NAMES = [f"image{number}" for number in range(6)]
INPUT = [20.0, 21.0, 22.0, 23.0, 24.0, 25.0]
# The gain over the input is 1 to 6 dB: the signed-rank test's smallest p for six pairs, 2/64.
BETTER = [value + gain for gain, value in enumerate(INPUT, start=1)]
# One dB up and down in turn.
EVEN = [value + (1 if place % 2 else -1) for place, value in enumerate(INPUT)]


def write(
    folder: Path,
    stages: dict[str, list[float | None]],
    *,
    names: list[str] = NAMES,
    metric: str = "psnr",
    inputs: list[float | None] | None = None,
    **content: Any,
) -> Path:
    """A folder with an evaluation.json of these figures."""
    rows = {"input": INPUT[: len(names)] if inputs is None else inputs, **stages}
    per_image = [
        {"name": name, **{row: {metric: values[place]} for row, values in rows.items()}}
        for place, name in enumerate(names)
    ]
    folder.mkdir(parents=True)
    evaluation = {
        "images": len(names),
        "input": {},
        "stages": {stage: {} for stage in stages},
        "per_image": per_image,
        **content,
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def read(*folders: Path) -> list[StoredEvaluation]:
    return named_apart([e for f in folders for e in read_evaluations(open_location(f))])


def table(*folders: Path, **options: Any) -> Comparison:
    return compare(read(*folders), **options)


def test_means_best_and_significance(tmp_path: Path) -> None:
    found = table(
        write(tmp_path / "a", {"base": EVEN, "uda": BETTER}),
        write(tmp_path / "b", {"uda": INPUT}),
    )
    assert list(found.rows) == ["input", "a/base", "a/uda", "b/uda"]
    assert found.metrics == ["psnr"]
    assert found.images == 6
    cells = {row: cell["psnr"] for row, cell in found.rows.items()}
    assert {row: cell.statistics.mean for row, cell in cells.items()} == {
        "input": 22.5,
        "a/base": 22.5,
        "a/uda": 26.0,
        "b/uda": 22.5,
    }
    assert [row for row, cell in cells.items() if cell.best] == ["a/uda"]
    # Three comparisons: 2/64 for the best, times 3; the others don't differ at all.
    assert cells["input"].p is None
    assert cells["a/uda"].p == pytest.approx(3 * 2 / 64)
    assert cells["a/base"].p == cells["b/uda"].p == 1.0
    low, high = cells["input"].statistics.ci95 or (0.0, 0.0)
    assert 20.0 < low < 22.5 < high < 25.0
    assert any("n = 6 pairs, Holm-corrected for 3 comparisons" in note for note in found.notes)
    assert not any("fewer than" in note for note in found.notes)


def test_another_reference_and_lower_is_better(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"base": EVEN, "uda": BETTER}, metric="lpips")
    found = table(folder, reference="a/uda")
    cells = {row: cell["lpips"] for row, cell in found.rows.items()}
    assert [row for row, cell in cells.items() if cell.best] == ["input", "a/base"]
    assert cells["a/uda"].p is None
    assert cells["input"].p == pytest.approx(2 * 2 / 64)
    with pytest.raises(SettingsError, match=r"--reference uda: choose from input, a/base, a/uda"):
        table(folder, reference="uda")


def test_only_common_images_count(tmp_path: Path) -> None:
    found = table(
        write(tmp_path / "a", {"uda": BETTER}),
        write(tmp_path / "b", {"uda": [1.0, 2.0]}, names=["image0", "image1"]),
    )
    assert found.images == 2
    assert found.rows["a/uda"]["psnr"].statistics.mean == (21.0 + 23.0) / 2
    assert "Only images that every evaluation has are used: 2 (6 in a, 2 in b)." in found.notes
    assert any("fewer than 6 pairs" in note for note in found.notes)


def test_pairs_are_made_by_name_not_by_place(tmp_path: Path) -> None:
    backwards = write(
        tmp_path / "b", {"uda": BETTER[::-1]}, names=NAMES[::-1], inputs=list(INPUT[::-1])
    )
    found = table(write(tmp_path / "a", {"uda": BETTER}), backwards, reference="a/uda")
    assert found.rows["b/uda"]["psnr"].p == 1.0


def test_a_figure_that_is_not_finite_leaves_its_image_out(tmp_path: Path) -> None:
    found = table(write(tmp_path / "a", {"uda": [None, *BETTER[1:]]}))
    assert found.rows["input"]["psnr"].statistics.mean == 23.0
    assert found.rows["input"]["psnr"].statistics.n == 5
    assert any(note.startswith("PSNR: 5 images") for note in found.notes)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"names": [f"other{place}" for place in range(6)]}, "no image in common"),
        ({"inputs": [20.5, *INPUT[1:]]}, r"the input image0 has psnr 20\.5 instead of 20"),
        ({"provenance": {"test_set": "bb"}}, r"another test set than .* \(bb instead of aa\)"),
        ({"provenance": {"test_set": "aa", "border": 4}}, "another border"),
    ],
)
def test_other_test_sets_and_settings_are_refused(
    tmp_path: Path, second: dict[str, Any], reason: str
) -> None:
    first = write(tmp_path / "a", {"uda": BETTER}, provenance={"test_set": "aa", "border": 0})
    other = write(tmp_path / "b", {"uda": BETTER}, **second)
    with pytest.raises(QdmrError, match=reason) as caught:
        table(first, other)
    assert str(other / "evaluation.json") in str(caught.value)


def test_other_niqe_parameters_are_refused_only_where_niqe_is_shown(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / name, {"uda": BETTER}, metric=metric, niqe_parameters=file)
        for name, metric, file in (("a", "niqe", "x.mat"), ("b", "niqe", "y.mat"))
    ]
    with pytest.raises(QdmrError, match=r"another niqe_parameters .*y\.mat instead of x\.mat"):
        table(*folders)
    for folder in folders:
        file = folder / "evaluation.json"
        file.write_text(file.read_text().replace('"niqe":', '"psnr":'))
    assert table(*folders).metrics == ["psnr"]


def test_which_files_metrics_compare_with_stands_below_the_table(tmp_path: Path) -> None:
    for metric, key in (("niqe", "niqe_parameters"), ("lpips", "lpips_weights")):
        known: dict[str, Any] = {key: "x, sha256 12"}
        first = write(tmp_path / metric / "a", {"uda": BETTER}, metric=metric, **known)
        silent = write(tmp_path / metric / "b", {"uda": BETTER}, metric=metric)
        other = write(tmp_path / metric / "c", {"uda": BETTER}, metric=metric, **{key: "y"})
        for style in ("plain", "markdown", "latex"):
            text = comparison_text(table(first), style)
            assert f"{metric.upper()} with " in text
            assert "x, sha256 12." in text
        assert "x, sha256 12; not recorded in b." in comparison_text(table(first, silent))
        with pytest.raises(QdmrError, match=f"another {key}"):
            table(first, silent, other)


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first = write(tmp_path / "x" / "run", {"uda": BETTER})
    second = write(tmp_path / "y" / "run", {"uda": EVEN})
    assert list(table(first, second).rows) == ["input", f"{first}/uda", f"{second}/uda"]
    with pytest.raises(SettingsError, match="named twice"):
        table(first, first / "evaluation.json")


def test_what_is_no_evaluation(tmp_path: Path) -> None:
    with pytest.raises(QdmrError, match=r"evaluation\.json: there is no evaluation"):
        read(tmp_path)
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(QdmrError, match="expected") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_metric(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--metric ssim: .*choose from psnr"):
        table(write(tmp_path / "a", {"uda": BETTER}), metrics=["ssim"])


def test_plain_text(tmp_path: Path) -> None:
    flat = [30.0] * 6
    text = comparison_text(
        table(write(tmp_path / "a", {"uda": flat}, inputs=list(flat)), metrics=["psnr"])
    )
    assert text.splitlines()[:3] == [
        "                 PSNR (dB) ^      p",
        "input  30.00* [30.00, 30.00]      -",
        "a/uda  30.00* [30.00, 30.00]  1.000",
    ]


def test_markdown_and_latex(tmp_path: Path) -> None:
    constant = [25.0] * 6
    found = table(
        write(tmp_path / "run_1", {"my_stage": [26.0] * 6}, inputs=list(constant)),
        reference="input",
    )
    markdown = comparison_text(found, "markdown").splitlines()
    assert markdown[:4] == [
        "|  | PSNR (dB) ↑ | p |",
        "| --- | ---: | ---: |",
        "| input | 25.00 [25.00, 25.00] | - |",
        "| run_1/my_stage | **26.00** [26.00, 26.00] | 0.031 |",
    ]
    latex = comparison_text(found, "latex").splitlines()
    assert latex[1:9] == [
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r" & PSNR (dB) $\uparrow$ & p \\",
        r"\midrule",
        r"input & 25.00 [25.00, 25.00] & - \\",
        r"run\_1/my\_stage & \textbf{26.00} [26.00, 26.00] & 0.031 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert all(line.startswith("%") for line in latex[9:])
    with pytest.raises(SettingsError, match="--format html: choose from plain, markdown, latex"):
        comparison_text(found, "html")


def test_latex_escapes() -> None:
    assert escape_latex(r"a_b & 5% $x {y} #1 ~^ \z <") == (
        r"a\_b \& 5\% \$x \{y\} \#1 \textasciitilde{}\textasciicircum{} "
        r"\textbackslash{}z \textless{}"
    )


def test_the_command_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "a", {"uda": BETTER})
    command([str(folder)], style="markdown", reference="input", metric=["psnr"])
    assert "| a/uda | **26.00** [" in capsys.readouterr().out


def write_sweep(folder: Path, variants: dict[str, list[list[float | None]]]) -> Path:
    """A sweep's folder with these PSNRs of each variant's seeds."""
    trials = []
    for number, (name, seeds) in enumerate(variants.items()):
        for seed, values in enumerate(seeds):
            trial = f"{number:04}-s{seed}" if seed else f"{number:04}"
            write(folder / "trials" / trial, {"uda": values})
            record = {"id": trial, "number": number, "name": name, "seed": seed, "settings": {}}
            trials.append({**record, "state": "finished"})
    # Neither is a row: one failed, one was never evaluated.
    trials.append({"id": "0008", "number": 8, "settings": {}, "state": "failed"})
    trials.append({"id": "0009", "number": 9, "settings": {}, "state": "finished"})
    sweep = {"name": folder.name, "metrics": [{"name": "uda/validation/psnr"}], "trials": trials}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return folder


def test_a_sweeps_variants_are_rows_over_their_seeds(tmp_path: Path) -> None:
    up, down = [value + 1 for value in INPUT], [value - 1 for value in INPUT]
    folder = write_sweep(tmp_path / "s", {"plain": [up, down], "uda": [BETTER, BETTER, BETTER]})
    found = table(folder, reference="plain")
    assert list(found.rows) == ["input", "plain", "uda"]
    cells = {row: cell["psnr"] for row, cell in found.rows.items()}
    # The seeds' means are 23.5 and 21.5; an image's mean is that of the input.
    assert cells["plain"].statistics.mean == cells["input"].statistics.mean == 22.5
    assert cells["plain"].spread == pytest.approx(2**0.5)
    assert cells["uda"].spread == 0.0
    assert cells["input"].spread is None
    # Photographs are the unit, not seeds: six pairs, two comparisons.
    assert cells["plain"].difference is None
    assert cells["uda"].difference is not None
    assert cells["uda"].difference.mean == 3.5
    assert cells["uda"].difference.n == 6
    low, high = cells["uda"].difference.ci95 or (0.0, 0.0)
    assert 1.0 < low < 3.5 < high < 6.0
    assert cells["uda"].p == pytest.approx(2 * 2 / 64)
    assert found.notes[0].startswith(
        "Means over 6 images of each image's mean over 3 seeds (plain 2)"
    )
    assert found.notes[1].startswith("Difference to plain")
    missing = "s/0008 (seed 0, failed), s/0009 (seed 0, finished)"
    assert f"Without an evaluation, and so in no row: {missing}." in found.notes


def test_a_table_over_seeds_reads_in_every_format(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {"plain": [INPUT, EVEN], "uda": [BETTER, BETTER]})
    found = table(folder, reference="plain")
    plain = comparison_text(found)
    heading, _, reference, uda = plain.splitlines()[:4]
    assert heading.split() == ["PSNR", "(dB)", "^", "difference", "p"]
    assert reference.split() == ["plain", "22.50", "±", "0.00", "-", "-"]
    assert uda.startswith("uda    26.00* ± 0.00  +3.50 [+")
    assert "| uda | **26.00** ± 0.00 | +3.50 [" in comparison_text(found, "markdown")
    assert r"uda & \textbf{26.00} $\pm$ 0.00 & +3.50 [" in comparison_text(found, "latex")


def test_an_image_counts_where_every_seed_has_it(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", {"uda": [BETTER, [None, *BETTER[1:]]]})
    found = table(folder)
    assert found.rows["uda"]["psnr"].statistics.n == 5


def test_a_sweep_and_a_run_stand_in_one_table(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s", {"uda": [BETTER, BETTER]})
    other = write_sweep(tmp_path / "t", {"uda": [INPUT]})
    found = table(sweep, other, write(tmp_path / "a", {"base": EVEN}))
    # Two sweeps have a variant of this name.
    assert list(found.rows) == ["input", f"{sweep}/0", f"{other}/0", "a/base"]


def test_a_sweep_without_evaluations_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    write_sweep(folder, {})
    with pytest.raises(QdmrError, match="no trial of this sweep is evaluated; run qdmr sweep"):
        read(folder)


def test_a_trial_lies_in_its_sweep(tmp_path: Path) -> None:
    write(tmp_path / "secret", {"uda": BETTER})
    folder = write_sweep(tmp_path / "s", {"uda": [BETTER]})
    file = folder / "sweep.json"
    file.write_text(file.read_text().replace('"id": "0000"', '"id": "../../secret"'))
    with pytest.raises(QdmrError, match=r"sweep\.json: a trial's id: '\.\./\.\./secret' holds a /"):
        read(folder)
