"""Names of the images that an evaluation compares, and the labels that people read instead."""

from qdmr_ray.stages import STAGES

# Like the stages' names: keys of `evaluation.json` and stems of pictures in `evaluation/NAME/`.
INPUT = "input"
GROUND_TRUTH = "ground_truth"
# The sheet that compares these pictures, beside them.
COMPARISON = "comparison"
# The photograph through the source lens, and what the VQGAN makes of it.
SOURCE_LENS = "source_lens"
S2T = "s2t"
# The set of a packed dataset that is judged.
TEST_SET = "test"
IMAGE_LABELS = {
    INPUT: "Aberrated input",
    SOURCE_LENS: "Through the source lens",
    S2T: "s2t image",
    GROUND_TRUTH: "Ground truth",
}


def label(name: str) -> str:
    """Returns the label of a stage, of the input or of the ground truth: ``uda`` becomes ``UDA``. A
    stage whose plugin isn't loaded keeps its own name."""
    return STAGES[name].label if name in STAGES else IMAGE_LABELS.get(name, name)
