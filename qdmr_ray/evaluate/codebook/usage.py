"""How source and target photographs use the codes of one codebook: counts and what follows.

    usage = CodebookUsage.read(open_location("runs/demo").join(USAGE_FILE))

A codebook mixes the domains where both choose the same codes. A code that only one domain chooses
is its own: what that domain stores there is of no use to the other.
"""

from typing import Any, Self

import numpy as np
from pydantic import model_serializer, model_validator

from qdmr_ray.storage.document import Document, Part

USAGE_FILE, ATLAS_FILE = "codebook.json", "codebook.png"

# A code is a domain's own where that domain makes at least this share of its use.
OWN_SHARE = 0.9
SOURCE, TARGET = "source", "target"
# The groups of codes, in display order.
SOURCE_OWN, SHARED, TARGET_OWN, DEAD = "source_own", "shared", "target_own", "dead"
GROUPS = (SOURCE_OWN, SHARED, TARGET_OWN, DEAD)
GROUP_LABELS = {
    SOURCE_OWN: "the source's own",
    SHARED: "shared",
    TARGET_OWN: "the target's own",
    DEAD: "chosen by neither",
}


def perplexity(frequencies: np.ndarray) -> float:
    """Returns ``exp(entropy)`` of the codes' frequencies (K,): 1 for one code, K where all are used
    alike (van den Oord et al., 2017)."""
    chosen = frequencies[frequencies > 0]
    return float(np.exp(-(chosen * np.log(chosen)).sum()))


def divergence_bits(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Jensen-Shannon divergence in bits of two lists of frequencies (K,): 0 where they
    are alike, 1 where no code is shared (Lin, 1991)."""
    middle = (first + second) / 2
    return (_relative_entropy(first, middle) + _relative_entropy(second, middle)) / 2


class SetUsage(Part):
    """The choices of one set: ``counts[k]`` is how often code k was chosen, over ``crops`` squares
    cut from ``photographs`` photographs."""

    photographs: int
    crops: int
    counts: tuple[int, ...]

    @property
    def choices(self) -> int:
        """The number of positions in all code maps; each chose one code."""
        return sum(self.counts)

    @property
    def frequencies(self) -> np.ndarray:
        """float64 (K,): the share of the choices that fell on each code."""
        return np.asarray(self.counts, dtype=np.float64) / max(1, self.choices)

    @property
    def used(self) -> int:
        """The number of codes that were chosen at all."""
        return sum(count > 0 for count in self.counts)

    @property
    def used_share(self) -> float:
        """The share of the codebook that was chosen at all."""
        return self.used / len(self.counts)

    @property
    def perplexity(self) -> float:
        """The perplexity of the frequencies."""
        return perplexity(self.frequencies)


class CodebookUsage(Document):
    """``codebook.json``: the use of one codebook by both domains, and what it was counted on.

    ``crop`` is the largest side of the squares in pixels; a code is a domain's own from
    ``own_share`` of its use on; ``weights_sha256`` and ``data_digest`` identify network and
    dataset. The file also holds everything that follows from the counts; a reader computes it anew.
    """

    source: SetUsage
    target: SetUsage
    crop: int
    own_share: float = OWN_SHARE
    weights_sha256: str = ""
    data_digest: str = ""

    @property
    def codes(self) -> int:
        """The size of the codebook."""
        return len(self.source.counts)

    @property
    def target_share(self) -> np.ndarray:
        """float64 (K,): ``t / (s + t)`` of the frequencies of each code, NaN where it is dead."""
        source, target = self.source.frequencies, self.target.frequencies
        both = source + target
        return np.divide(target, both, out=np.full(self.codes, np.nan), where=both > 0)

    @property
    def divergence(self) -> float:
        """The Jensen-Shannon divergence of the two uses in bits."""
        return divergence_bits(self.source.frequencies, self.target.frequencies)

    @property
    def target_on_source_codes(self) -> float:
        """The share of the target's choices that fall on codes which the source chooses at all."""
        return float(self.target.frequencies[np.asarray(self.source.counts) > 0].sum())

    def groups(self) -> np.ndarray:
        """str (K,): for each code, which of ``GROUPS`` it belongs to."""
        source, target = self.source.frequencies, self.target.frequencies
        both, groups = source + target, np.full(self.codes, SHARED, dtype="U10")
        # The comparison avoids a division, so that 9 of 10 is not lost to rounding.
        groups[source >= self.own_share * both] = SOURCE_OWN
        groups[target >= self.own_share * both] = TARGET_OWN
        groups[both == 0] = DEAD
        return groups

    def group_sizes(self) -> dict[str, int]:
        """Counts the codes in each group."""
        groups = self.groups()
        return {group: int((groups == group).sum()) for group in GROUPS}

    def order(self) -> list[int]:
        """Sorts the codes from the source's own to the target's own by target share, dead ones
        last; of equal shares, the code that is chosen most comes first."""
        # Equal shares need not be equal to the last bit, hence the rounding.
        share, groups = np.nan_to_num(self.target_share).round(12), self.groups()
        use = self.source.frequencies + self.target.frequencies
        group_places = np.array([GROUPS.index(group) for group in groups])
        return np.lexsort((np.arange(self.codes), -use, share, group_places)).tolist()

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, content: Any) -> Any:
        sets = content.get("sets") if isinstance(content, dict) else None
        return {**content, **sets} if isinstance(sets, dict) else content

    @model_validator(mode="after")
    def _check(self) -> Self:
        counts = self.source.counts, self.target.counts
        if not counts[0] or len(counts[0]) != len(counts[1]) or min(map(min, counts)) < 0:
            raise ValueError("counts must be one list of counts for each set, of the same length")
        return self

    @model_serializer
    def _to_file(self) -> dict[str, Any]:
        # A dead code's target share is null.
        shares = self.target_share.tolist()
        return {
            "codes": self.codes,
            "crop": self.crop,
            "own_share": self.own_share,
            "sets": {SOURCE: _set_dict(self.source), TARGET: _set_dict(self.target)},
            "divergence_bits": self.divergence,
            "target_on_source_codes": self.target_on_source_codes,
            "groups": self.group_sizes(),
            "target_share": [None if share != share else share for share in shares],
            "weights_sha256": self.weights_sha256,
            "data_digest": self.data_digest,
        }


def _set_dict(usage: SetUsage) -> dict[str, Any]:
    derived = ("choices", "used", "used_share", "perplexity")
    return {**usage.model_dump(mode="json"), **{name: getattr(usage, name) for name in derived}}


def _relative_entropy(of: np.ndarray, to: np.ndarray) -> float:
    """Returns the Kullback-Leibler divergence in bits; ``to`` is above 0 wherever ``of`` is."""
    known = of > 0
    return float((of[known] * np.log2(of[known] / to[known])).sum())
