"""``qdmr data``: fetch, simulate, pack and inspect datasets."""

import sys
from pathlib import Path
from typing import Any

from qdmr_ray.cli.options import ENDPOINT, OVERRIDES, App, Domain, TargetSet, argument, flag, option
from qdmr_ray.cli.output import Table, bar, bars, in_megabytes, print_table, say, tell, working
from qdmr_ray.errors import QdmrError

app = App(
    "Data",
    "data",
    "Fetch, simulate, pack and inspect datasets.",
    "data pack Realab --out data/realab-s1 --lens S1",
)


@app.command(example="data simulate photos --lens prescription --out data/mine")
def simulate(
    source: str = argument("SRC_DIR", "Folder of clean photographs, or s3://bucket/path."),
    lens: list[str] = option(
        ...,
        "A shipped lens, a lens .yaml, PSFs in an .npz, or a folder of these; may be repeated.",
    ),
    out: str = option(..., "Where the Realab layout goes: a folder or s3://bucket/path."),
    domain: Domain = option("source", "Which set they become."),
    lens_name: str | None = option(
        None, "Name of a single lens's folder; the lens's own by default."
    ),
    seed: int = option(0, "Seed of the sensor's noise."),
    endpoint: str | None = ENDPOINT,
) -> None:
    """Turn clean photographs into pairs of clean and aberrated ones, by a lens model.

    Pictures that are there already, made from the same photograph by the same lens, are kept.
    """
    from qdmr_ray.data.simulation import simulate_folder
    from qdmr_ray.storage import any_path

    with bar("simulate") as progress:
        count = simulate_folder(
            any_path(source, endpoint=endpoint),
            lens,
            out,
            domain=domain,
            lens_name=lens_name,
            seed=seed,
            progress=progress,
            endpoint=endpoint,
            start_ray=_start_ray,
            say=tell,
        )
    say(f"{count} photographs through {', '.join(lens)} into {out}")


@app.command("fetch-realab", example="data fetch-realab --out data/Realab")
def fetch_realab(
    out: Path = option(Path("data/Realab"), "Folder for the benchmark."),
    endpoint: str | None = option(
        None, "A hub or mirror; HF_ENDPOINT or https://huggingface.co by default.", metavar="URL"
    ),
    revision: str = option("main", "Branch, tag or commit of the dataset."),
    include: list[str] | None = option(
        None, "Only these files, such as 'Syn/*'; may be repeated.", metavar="PATTERN"
    ),
    keep_archives: bool = flag("--keep-archives", "Keep archives that were unpacked."),
) -> None:
    """Download the Realab benchmark, checked; the same command again continues a download.

    HF_TOKEN is sent if it is set, but over plain http to this machine alone.
    """
    from qdmr_ray.data.realab import fetch_realab as fetch

    with bars() as progress:
        said = fetch(
            out,
            endpoint=endpoint,
            revision=revision,
            include=include or (),
            keep_archives=keep_archives,
            progress=in_megabytes(progress),
        )
    say(*said)


@app.command(example="data pack Realab --out data/realab-s1 --lens S1")
def pack(
    source: str = argument("SRC", "Folder in the Realab layout, or s3://bucket/path."),
    out: str = option(..., "Where the shards go: a folder or s3://bucket/path."),
    lens: str | None = option(None, "Lens folder, such as S1."),
    target_set: TargetSet | None = option(None, "Folder of target photographs."),
    endpoint: str | None = ENDPOINT,
    overrides: list[str] | None = OVERRIDES,
) -> None:
    """Pack folders of images into shards and a manifest.

    --set source_images=FOLDER and so on name folders of another layout.
    """
    from pydantic import TypeAdapter

    from qdmr_ray.data.packing.pack import PackSettings
    from qdmr_ray.data.packing.pack import pack as pack_folders
    from qdmr_ray.parsing import apply_override, parse_settings
    from qdmr_ray.storage import any_path

    values: dict[str, Any] = {"lens": lens, "target_set": target_set}
    for override in overrides or ():
        apply_override(values, override)
    settings = parse_settings(TypeAdapter(PackSettings), values, "qdmr data pack")

    with bar("pack") as progress:
        pack_folders(
            any_path(source, endpoint=endpoint),
            out,
            settings=settings,
            progress=progress,
            start_ray=_start_ray,
            endpoint=endpoint,
            say=tell,
        )
    _print_dataset(out, endpoint)


@app.command(example="data inspect data/realab-s1 --verify")
def inspect(
    uri: str = argument("URI", "A packed dataset."),
    verify: bool = flag("--verify", "Read every record against its checksum."),
    sheet: Path | None = option(
        None, "Contact sheet; NAME-sheet.png here by default.", metavar="F"
    ),
    endpoint: str | None = ENDPOINT,
) -> None:
    """Show what a packed dataset holds: a table, a histogram of sizes, a contact sheet (PNG)."""
    from qdmr_ray.data.contact_sheet import contact_sheet
    from qdmr_ray.data.format.reader import RecordReader
    from qdmr_ray.data.format.verify import verify as verify_records
    from qdmr_ray.photographs.decode import write_png

    _print_dataset(uri, endpoint)
    file = sheet or Path(f"{uri.rstrip('/').rsplit('/', 1)[-1]}-sheet.png")
    with working("contact sheet"):
        write_png(file, contact_sheet(RecordReader(uri, endpoint=endpoint)))
    say(f"contact sheet {file}")
    if not verify:
        return
    with bar("verify") as progress:
        problems = verify_records(
            uri, progress=progress, endpoint=endpoint, start_ray=_start_ray, say=tell
        )
    for problem in problems:
        tell(problem.text)
    if problems:
        raise QdmrError(f"{uri}: {len(problems)} bad records or shards; pack the dataset again")
    say("every record agrees with its checksum")


def _start_ray() -> None:
    from qdmr_ray.ray_cluster import ensure_ray

    ensure_ray()


def _print_dataset(uri: str, endpoint: str | None) -> None:
    from qdmr_ray.data.contact_sheet import size_histogram
    from qdmr_ray.data.format.manifest import read_manifest
    from qdmr_ray.storage import open_location

    manifest = read_manifest(open_location(uri, endpoint=endpoint))
    table = Table("set", "images", "ground truth", "shards", "MB", "mean R, G, B", "std R, G, B")
    for name, entry in manifest.sets.items():
        counts = str(entry.images), "yes" if entry.paired else "no", str(len(entry.shards))
        megabytes = f"{sum(shard.bytes for shard in entry.shards) / 1e6:.1f}"
        values = (entry.image.mean, entry.image.std)
        channels = (", ".join(f"{value:.1f}" for value in each) for each in values)
        table.add_row(name, *counts, megabytes, *channels)
    print_table(table)
    for name, entry in manifest.sets.items():
        sizes = [(size.height, size.width, size.images) for size in entry.sizes]
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        for line in size_histogram(sizes, ascii_only=not unicode):
            say(f"{name:6}  {line}")
    for file in manifest.left_out:
        say(f"left out of {file.set}: {file.origin} ({file.reason})")
    say(f"{uri}  digest {manifest.digest[:12]}")
