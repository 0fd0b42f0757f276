"""Bad samples are too many in a row, in all, or where there are no others."""

import pytest

from navit_clip.data.config import DataConfig
from navit_clip.data.faults import Faults
from navit_clip.data.order import Place
from navit_clip.data.patience import Patience
from navit_clip.errors import DataError


def place(entry: int) -> Place:
    return Place(visit=0, position=0, shard=0, entry=entry)


def test_all_are_bad_only_if_none_was_good_meanwhile():
    """So what is kept of the bad ones stays few, however many there are in the data."""
    patience = Patience(DataConfig(shards=["s.tar"]), Faults())
    patience.bad("reading", place(0), num_samples=2)
    patience.good("decoding")
    patience.bad("reading", place(1), num_samples=2)
    with pytest.raises(DataError, match="every sample of the shards is bad"):
        patience.bad("reading", place(0), num_samples=2)
