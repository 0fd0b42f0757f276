"""Damaged shards through all that reads them: nothing but a counted fault may come of it.

    python benchmarks/fuzz.py --seconds 600

atheris mutates whole shards (the hostile ones of the tests, and one of each format) by the coverage that they
reach in the package. Each is indexed, and every sample read, decoded at full size and for a small one,
and its captions taken. Any other error than a SampleError ends the run with the input kept. Prints what came
of the inputs.

Needs atheris: pip install atheris.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports] (see above)

with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
    include=["navit_clip.data", "tarfile", "json"]
):
    from navit_clip.data.images import EncodedImage, decode_image
    from navit_clip.data.samples import read_sample
    from navit_clip.data.shards import Shard
    from navit_clip.data.tar_index import OpenShard
    from navit_clip.errors import SampleError

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.data_builders import encode_image, noise_picture, write_tar
from tests.hostile import cases, write_hostile

MAX_PIXELS = 1_000_000
"""A mutated header that asks for more is a fault that needs no gigabytes."""


def main() -> None:
    """Runs for some time, and says how many inputs there were and what they came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    seconds = parser.parse_args().seconds
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in ("corpus", "shards"):
        (folder / name).mkdir()
    write_seeds(folder)
    shard, outcomes, start = folder / "s.tar", Counter(), time.time()

    def one(data: bytes) -> None:
        shard.write_bytes(data)
        outcomes.update(outcomes_of(shard))
        outcomes["inputs"] += 1
        if outcomes["inputs"] % 2000 == 0:
            elapsed = time.time() - start
            print(
                f"{elapsed:.0f} s: {', '.join(f'{n} {cause}' for cause, n in outcomes.most_common())}",
                flush=True,
            )

    options = [
        f"-max_total_time={seconds}",
        "-max_len=20000",
        "-timeout=30",
        "-rss_limit_mb=4000",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], str(folder / "corpus"), *options], one)
    atheris.Fuzz()


def write_seeds(folder: Path) -> None:
    """Small shards: each hostile sample beside a good one, each format, and the broken tars."""
    png = encode_image(noise_picture(8, 8))
    good = [("good.png", png), ("good.txt", b"a caption"), ("good.json", b'{"text": ["a", "b"]}')]
    for number, case in enumerate(cases(folder / "code-ran")):
        files = [(f"x{number}.{kind}", data[:6000]) for kind, data in case.files.items()]
        write_tar(folder / "corpus" / f"{number}.tar", [*good, *files])
    for format in ("jpg", "png", "webp", "gif", "bmp", "tif"):
        picture = encode_image(noise_picture(16, 16), format)
        write_tar(
            folder / "corpus" / f"{format}.tar", [(f"a.{format}", picture), ("a.json", b'{"text": "a"}')]
        )
    for path in write_hostile(folder / "shards", folder / "code-ran")[0]:
        data = Path(path).read_bytes()
        if len(data) < 20_000:
            (folder / "corpus" / Path(path).name).write_bytes(data)


def outcomes_of(path: Path) -> Counter[str]:
    """How many samples of a shard are used, or come to which fault."""
    outcomes: Counter[str] = Counter()
    shard = OpenShard(Shard(str(path), "s"))
    for index in range(len(shard)):
        try:
            sample = read_sample(shard, index, "txt", other_captions={"json.text": 1.0})
            small = EncodedImage(sample.image, MAX_PIXELS)
            small.decode((max(1, small.height // 4), max(1, small.width // 4)))
            decode_image(sample.image, MAX_PIXELS)
            outcomes["used"] += 1
        except SampleError as error:
            outcomes[error.cause] += 1
    shard.close()
    return outcomes


if __name__ == "__main__":
    main()
