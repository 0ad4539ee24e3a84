"""Experiment files: what is refused and in which words, overrides, the saved copy, digests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qdmr_ray.config import (
    Experiment,
    dump_experiment,
    experiment_from_dict,
    experiment_of_run,
    experiment_type,
    load_experiment,
    stage_digest,
)
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.parsing import all_settings
from qdmr_ray.stages import STAGES

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
# Sweeps are files of another kind; tests/sweeps reads them.
SHIPPED = sorted(p for p in EXPERIMENTS.rglob("*.yaml") if "\nexperiment: " not in p.read_text())
DATA_DIGEST = "0" * 64

Loader = Callable[..., Experiment]


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    """``load(text, *overrides)``: the experiment in a file ``mine.yaml`` of this text."""

    def from_text(text: str, *overrides: str, name: str | None = None) -> Experiment:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return load_experiment(path, overrides, name=name)

    return from_text


def refusal(load: Loader, text: str, *overrides: str) -> str:
    """The message without the file's folder; always one line."""
    with pytest.raises(SettingsError) as error:
        load(text, *overrides)
    message = str(error.value)
    assert "\n" not in message
    return message[message.index("mine.yaml") :] if "mine.yaml" in message else message


def test_an_experiment_is_its_file_over_the_papers_values(load: Loader) -> None:
    experiment = load("run: [vqgan, uda]\nstages: {uda: {batch_size: 6, optimizer: {gamma: 0.25}}}")

    assert experiment.run == ("vqgan", "uda")
    assert experiment.stage("uda").batch_size == 6
    assert experiment.stage("uda").optimizer.gamma == 0.25
    # What the file doesn't name keeps METHOD.md's value, stage by stage.
    optimizer = experiment.stage("uda").optimizer
    assert optimizer.milestones == (100_000, 150_000, 175_000, 190_000)
    assert (optimizer.generator_lr, optimizer.discriminator_lr) == (1e-4, 4e-4)
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.99), 1e-8)


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        ("vqgan", {"iterations": 200_000, "batch_size": 8, "same_place_crops": True}),
        ("vqgan", {"gan_loss": "lsgan", "gan": 0.1, "semantic": 0.1, "codebook": 1.0}),
        ("vqgan", {"code_decay": None, "revive_after": None}),
        ("base", {"iterations": 200_000, "batch_size": 4, "same_place_crops": False}),
        ("base", {"gan_loss": "hinge", "gan": 0.01, "codebook": 1.0, "code_guidance": 0.0}),
        ("uda", {"iterations": 400_000, "batch_size": 4, "same_place_crops": False}),
        ("uda", {"gan_loss": "hinge", "gan": 0.01, "feature_gan": 0.01, "feature_label": 0.5}),
        ("uda", {"codebook": 1.0, "s2t_codebook": 1.0, "target_codebook": 0.1}),
        ("uda", {"target_feature": 0.1, "code_guidance": 0.0}),
        ("source_only", {"iterations": 200_000, "gan_loss": "hinge", "gan": 0.01}),
    ],
)
def test_defaults_are_the_methods(stage: str, wanted: dict[str, Any]) -> None:
    settings = experiment_from_dict({}).stage(stage)
    assert {name: getattr(settings, name) for name in wanted} == wanted
    assert (settings.l1, settings.lpips, settings.crop) == (1.0, 1.0, 256)
    assert (
        settings.optimizer.milestones
        == ((100_000, 150_000, 175_000, 190_000), ())[stage == "vqgan"]
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_shipped_experiments_load(path: Path) -> None:
    experiment = load_experiment(path)
    assert experiment.name
    assert experiment.run
    assert experiment_of_run(dump_experiment(experiment), "saved") == experiment


def test_there_are_shipped_experiments() -> None:
    assert EXPERIMENTS / "demo.yaml" in SHIPPED


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("nettwork: {}", "unknown setting nettwork; did you mean network?"),
        ("stages: {bas: {}}", "unknown setting stages.bas; did you mean stages.base?"),
        (
            "stages: {vqgan: {iteratons: 4}}",
            "unknown setting stages.vqgan.iteratons; did you mean stages.vqgan.iterations?",
        ),
        (
            "network: {swin: {head: 4}}",
            "unknown setting network.swin.head; did you mean network.swin.heads?",
        ),
        ("window: 4", "unknown setting window; did you mean network.swin.window?"),
        (
            "stages: {base: {semantic: 0}}",
            "unknown setting stages.base.semantic; did you mean stages.vqgan.semantic?",
        ),
        ("network: {loader_cpus: 1}", "did you mean data.loader_cpus?"),
        ("xyzzy: 1", "unknown setting xyzzy; known: name, seed, run"),
        ("discriminator: {xyzzy: 1}", "unknown setting discriminator.xyzzy; known: width"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    load: Loader, text: str, hint: str
) -> None:
    message = refusal(load, text)
    assert message.startswith("mine.yaml: unknown setting ")
    assert hint in message
    # The same words when the key comes from the command line.
    key, value = _as_override(yaml.safe_load(text))
    assert refusal(load, "seed: 1", f"{key}={value}") == message


def _as_override(values: dict[str, Any]) -> tuple[str, str]:
    key, value = next(iter(values.items()))
    if isinstance(value, dict) and value:
        inner, text = _as_override(value)
        return f"{key}.{inner}", text
    return key, yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


def test_an_override_changes_one_of_the_sections_that_share_an_anchor(load: Loader) -> None:
    text = "stages:\n  base: &short {iterations: 5, l1: 2}\n  source_only: *short\n"
    stages = load(text, "stages.base.l1=3").stages
    assert stages.base.l1 == 3
    assert stages.source_only.l1 == 2


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("seed=", "seed is None"),
        ("seed=first", "seed is 'first'"),
        ("stages.vqgan.iterations=many", "stages.vqgan.iterations is 'many'"),
        ("stages.vqgan.iterations=2.5", "stages.vqgan.iterations is 2.5"),
        ("stages.vqgan.optimizer=5", "stages.vqgan.optimizer is 5"),
        ("network.widths=64", "network.widths is 64"),
        ("network.widths=[64, wide]", "network.widths.1 is 'wide'"),
        ("scaling.gpu=maybe", "scaling.gpu is 'maybe'"),
        ("data.path=5", "data.path is 5"),
        ("run=vqgan", "run is 'vqgan'"),
    ],
)
def test_a_wrong_type_is_named_with_setting_and_value(
    load: Loader, override: str, named: str
) -> None:
    assert refusal(load, "seed: 1", override).startswith(f"mine.yaml: {named}: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed must be at least 0; it is -1"),
        ("stages.vqgan.iterations=0", "stages.vqgan.iterations must be at least 1; it is 0"),
        ("stages.uda.l1=.nan", "stages.uda.l1 must be a finite number; it is nan"),
        (
            "stages.base.gan_loss=wgan",
            "stages.base.gan_loss must be one of hinge, lsgan; it is 'wgan'",
        ),
        (
            "stages.vqgan.optimizer.betas=[0.9, 1.5]",
            "stages.vqgan.optimizer.betas must be at most 1; it is 1.5",
        ),
        (
            "run=[vqgan, bse]",
            "run must be one of vqgan, source_only, base, uda; it is 'bse' (plugins names the "
            "modules that define other stages)",
        ),
    ],
)
def test_a_value_out_of_range_is_named_with_its_place(
    load: Loader, override: str, message: str
) -> None:
    assert refusal(load, "seed: 1", override) == f"mine.yaml: {message}"


def test_what_does_not_go_together_is_named_by_a_setting(load: Loader) -> None:
    known = {name for name, _ in all_settings(experiment_type())}
    for override in ("network.widths=[64]", "network.widths=[64, 36]"):
        message = refusal(load, "seed: 1", override)
        assert message.split()[1] in known, message


def test_overrides_replace_and_reach_into_sections_the_file_lacks(load: Loader) -> None:
    text = "stages: {vqgan: {iterations: 5, l1: 2}}"
    experiment = load(
        text,
        "stages.vqgan.iterations=7",
        "stages.vqgan.optimizer.milestones=[3, 5]",
        "network.swin.heads=4",
        "stages.vqgan.optimizer.generator_lr=5e-4",
        "name=first",
        "name=second",
        "weights.vgg16=",
    )
    vqgan = experiment.stages.vqgan
    assert (vqgan.iterations, vqgan.l1) == (7, 2.0)
    assert vqgan.optimizer.milestones == (3, 5)
    assert vqgan.optimizer.generator_lr == 5e-4
    assert experiment.network.swin.heads == 4
    assert experiment.name == "second"
    assert experiment.weights.vgg16 is None


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("seed", "--set seed: write --set section.setting=value"),
        ("=3", "--set =3: write --set section.setting=value"),
        ("seed.x=3", "--set seed.x=3: seed is a setting, not a section"),
        ("seed=[1", "--set seed=[1: the value is no YAML"),
    ],
)
def test_a_malformed_override_is_quoted(load: Loader, override: str, complaint: str) -> None:
    assert refusal(load, "seed: 1", override).startswith(complaint)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        (b"", "holds no settings"),
        (b"- vqgan\n", "holds no settings"),
        (b"run: [vqgan\n", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_experiment(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(QdmrError) as error:
        load_experiment(path)
    message = str(error.value)
    assert message.startswith(f"{path}: {complaint}")
    assert "\n" not in message


def test_the_run_is_named_by_option_setting_or_file(load: Loader) -> None:
    assert load("seed: 1").name == "mine"
    assert load("name: yours").name == "yours"
    assert load("name: yours", name="theirs").name == "theirs"


@pytest.mark.parametrize("run", ["[uda]", "[uda, vqgan]", "[base, vqgan]", "[source_only, base]"])
def test_a_stage_runs_after_the_one_it_starts_from(load: Loader, run: str) -> None:
    assert "without vqgan before it" in refusal(load, f"run: {run}")


@pytest.mark.parametrize("run", ["[source_only]", "[vqgan]", "[vqgan, base, uda, source_only]"])
def test_orders_that_work(load: Loader, run: str) -> None:
    assert list(load(f"run: {run}").run) == yaml.safe_load(run)


def test_crops_are_multiples_of_what_the_network_takes(load: Loader) -> None:
    message = refusal(load, "run: [vqgan]", "stages.vqgan.crop=100")
    assert message.startswith("mine.yaml: stages.vqgan.crop must be a multiple of 64 pixels")
    assert message.endswith("it is 100")
    # The multiple is the network's own, and stages that don't run don't matter.
    small = ("network.widths=[8, 16]", "network.swin.window=5", "network.swin.heads=2")
    small = (*small, "stages.vqgan.gan=0")
    assert load("run: [vqgan]", *small, "stages.vqgan.crop=100").stage("vqgan").crop == 100
    assert load("run: [vqgan]", "stages.uda.crop=100").stage("uda").crop == 100


SMALL = ("network.widths=[8, 16]", "network.swin.window=4", "network.swin.heads=2")


@pytest.mark.parametrize(
    ("settings", "start", "end"),
    [
        (
            ["stages.uda.crop=24"],
            "stages.uda.crop must be a multiple of 16 pixels (",
            "it is 24: take another, or set stages.uda.feature_gan=0",
        ),
        (
            ["network.swin.window=5", "stages.uda.crop=20"],
            "stages.uda.crop must be a multiple of 8 pixels (",
            "it is 20: take another, or set stages.uda.gan=0",
        ),
        (
            ["stages.uda.crop=8"],
            "stages.uda.crop must be at least 16 pixels (",
            "it is 8: take a larger one, or set stages.uda.lpips=0",
        ),
    ],
)
def test_crops_are_what_discriminators_and_lpips_take(
    load: Loader, settings: list[str], start: str, end: str
) -> None:
    run = ("run: [vqgan, uda]", *SMALL, "stages.vqgan.crop=80")
    message = refusal(load, *run, *settings)
    assert message.startswith(f"mine.yaml: {start}")
    assert message.endswith(end)
    # The way out that it tells is one.
    _, _, out = end.rpartition("set ")
    others = ("stages.uda.feature_gan=0", out)
    assert load(*run, *settings, *others).stage("vqgan").crop == 80


def test_the_saved_copy_gives_the_experiment_back(load: Loader) -> None:
    experiment = load(
        "notes: [Zernike's ä, 'a: b']\nrun: [vqgan, uda]",
        "network.widths=[24, 48, 64]",
        "network.swin.mlp_ratio=2.5",
        "stages.uda.optimizer.generator_lr=3.3333333333333e-5",
        "stages.uda.optimizer.betas=[0.5, 0.999]",
        "scaling.gpu=false",
        "data.path=s3://bucket/data",
        "weights.vgg19=~/vgg19.pth",
        "stages.vqgan.crop=96",
        "stages.uda.crop=128",
        "network.swin.window=8",
    )
    text = dump_experiment(experiment)

    assert experiment_of_run(text, "config.yaml") == experiment
    saved = yaml.safe_load(text)
    assert saved["code_version"]
    # Every setting in force is in the file, defaults included.
    for name, _ in all_settings(experiment_type()):
        section: Any = saved
        for part in name.split("."):
            assert part in section, name
            section = section[part]


def test_a_damaged_saved_copy_is_named() -> None:
    with pytest.raises(SettingsError, match=r"runs/x/config.yaml: unknown setting seeds; did you"):
        experiment_of_run("code_version: 1\nseeds: 2\n", "runs/x/config.yaml")


# Of the defaults, their first digits.
DIGESTS = {
    "vqgan": "e1f1be8961e2",
    "source_only": "c28a5612e69c",
    "base": "52f6b9c3fbb7",
    "uda": "e9a50d009df3",
}
DETERMINING = {
    "vqgan": [
        "seed=1",
        "scaling.workers=2",
        "discriminator.width=32",
        "network.widths=[32, 64, 128, 256]",
        "network.codebook_size=512",
        "network.commitment=0.5",
        "stages.vqgan.iterations=100",
        "stages.vqgan.batch_size=2",
        "stages.vqgan.crop=128",
        "stages.vqgan.same_place_crops=false",
        "stages.vqgan.semantic=0.2",
        "stages.vqgan.code_decay=0.9",
        "stages.vqgan.gan_loss=hinge",
        "stages.vqgan.optimizer.eps=1e-7",
    ],
    "base": [
        "stages.base.l1=2",
        "stages.base.code_guidance=1",
        "network.swin.blocks=2",
        "network.fusion=false",
        "stages.base.optimizer.gamma=0.1",
    ],
    "uda": [
        "stages.uda.feature_label=0.4",
        "stages.uda.s2t=false",
        "stages.uda.code_guidance=1",
        "stages.uda.target_codebook=0.2",
        "stages.uda.optimizer.milestones=[5]",
    ],
    "source_only": ["stages.source_only.gan=0", "network.global_residual=true"],
}
UNIMPORTANT = [
    "name=another",
    "notes=[remark]",
    "run=[vqgan]",
    "data.path=/elsewhere",
    "data.s3_endpoint=http://127.0.0.1:9",
    "data.loader_workers=5",
    "data.object_store_bytes=100000000",
    "weights.vgg19=/elsewhere/vgg19.pth",
    "scaling.cpus_per_worker=0.5",
    "scaling.threads=3",
    "scaling.gpu=true",
    "scaling.max_failures=9",
    "logging.log_interval=7",
    "logging.checkpoint_interval=7",
    "logging.validation_interval=7",
    "evaluation.border=4",
    "evaluation.validation_share=0.5",
]


@pytest.mark.parametrize(
    ("stage", "override"),
    [(stage, override) for stage, overrides in DETERMINING.items() for override in overrides],
)
def test_digest_changes_with_what_determines_the_result(
    load: Loader, stage: str, override: str
) -> None:
    before, after = load("seed: 0"), load("seed: 0", override)

    def changed(name: str) -> bool:
        return stage_digest(before, name, DATA_DIGEST) != stage_digest(after, name, DATA_DIGEST)

    assert changed(stage)
    # What changes a stage changes those that start from its result.
    assert all(changed(name) for name, later in STAGES.items() if stage in later.needs)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("override", UNIMPORTANT)
def test_digest_ignores_where_and_how_visibly_it_trains(
    load: Loader, stage: str, override: str
) -> None:
    before, after = load("seed: 0"), load("seed: 0", override)
    assert before != after
    assert stage_digest(before, stage, DATA_DIGEST) == stage_digest(after, stage, DATA_DIGEST)


def test_digest_is_the_stages_own(load: Loader) -> None:
    plain = load("seed: 0")
    other = load("seed: 0", "stages.uda.l1=2", "stages.source_only.l1=2")
    assert len({stage_digest(plain, stage, DATA_DIGEST) for stage in STAGES}) == len(STAGES)
    for stage in ("vqgan", "base"):
        assert stage_digest(plain, stage, DATA_DIGEST) == stage_digest(other, stage, DATA_DIGEST)
    # A VQGAN has no bottleneck and no fusion, and source_only does without the VQGAN.
    sizes = load("seed: 0", "network.swin.blocks=2", "network.fusion=false")
    assert stage_digest(plain, "vqgan", DATA_DIGEST) == stage_digest(sizes, "vqgan", DATA_DIGEST)
    codes = load("seed: 0", "network.codebook_size=512", "network.fusion=false")
    assert stage_digest(plain, "source_only", "") == stage_digest(codes, "source_only", "")
    vqgan = load("seed: 0", "stages.vqgan.l1=2")
    assert stage_digest(plain, "source_only", "") == stage_digest(vqgan, "source_only", "")


def test_digests_of_the_defaults_stay() -> None:
    """Else every run and every store would be begun anew: a setting that comes later is left out
    of the digest at its default (config._LATER_SETTINGS)."""
    digests = {
        stage: stage_digest(experiment_from_dict({}), stage, DATA_DIGEST)[:12] for stage in STAGES
    }
    assert digests == DIGESTS


def test_rounded_gradients_are_another_result_for_several_workers_alone() -> None:
    for workers, digests in ((1, 1), (2, 2)):
        found = {
            stage_digest(
                experiment_from_dict(
                    {"compute": {"gradients": gradients}, "scaling": {"workers": workers}}
                ),
                "vqgan",
                DATA_DIGEST,
            )
            for gradients in ("float32", "bfloat16")
        }
        assert len(found) == digests


@pytest.mark.parametrize("stage", STAGES)
def test_digest_changes_with_the_data(stage: str) -> None:
    digests = {
        stage_digest(experiment_from_dict({}), stage, data) for data in (DATA_DIGEST, "1" * 64)
    }
    assert len(digests) == 2


def test_plain_values_are_what_json_and_workers_take(load: Loader) -> None:
    experiment = load("run: [vqgan]", "network.widths=[24, 48]", "stages.vqgan.crop=64")
    plain = experiment.to_dict()
    assert plain["network"]["widths"] == [24, 48]
    assert experiment_from_dict(plain) == experiment
    assert {f.name for f in dataclasses.fields(experiment)} == plain.keys()


def test_a_misspelt_setting_in_the_wrong_section_is_still_found(load: Loader) -> None:
    assert "did you mean stages." in refusal(load, "batch_sze: 4")
    assert "batch_size?" in refusal(load, "batch_sze: 4")
    assert "did you mean network.swin.heads?" in refusal(load, "network: {head: 4}")


def test_an_empty_section_means_its_defaults(load: Loader) -> None:
    assert load("stages:\nnetwork:\n  swin:\n") == load("seed: 0")


def test_the_saved_settings_of_a_run_can_be_trained_again(tmp_path: Path, load: Loader) -> None:
    experiment = load("seed: 4")
    file = tmp_path / "config.yaml"
    file.write_text(dump_experiment(experiment))
    assert load_experiment(file) == experiment


@pytest.mark.parametrize("name", ["a/b", "../x", "", ".hidden", "two words"])
def test_a_name_that_is_no_folder_is_refused(load: Loader, name: str) -> None:
    if name:
        assert "name must be letters" in refusal(load, "seed: 1", f"name='{name}'")
    else:
        assert load("seed: 1", "name=''").name == "mine"


@pytest.mark.parametrize("run", ["[]", "[vqgan, vqgan]"])
def test_a_run_names_stages_each_once(load: Loader, run: str) -> None:
    assert "run must name stages, each once" in refusal(load, "seed: 1", f"run={run}")


def test_numbers_are_finite(load: Loader) -> None:
    assert "stages.vqgan.l1 must be a finite number" in refusal(
        load, "seed: 1", "stages.vqgan.l1=.inf"
    )
