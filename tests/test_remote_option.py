"""Each command that reads shards fetches those that lie elsewhere as it is told."""

import pytest

from navit_clip.cli import main
from navit_clip.data.remote import RemoteConfig
from navit_clip.data.validation import ValidationDataConfig, validation_batches
from navit_clip.embedding_sources import CaptionSource, ImageSource
from navit_clip.errors import ConfigError
from navit_clip.remote_option import remote_config
from tests.data_builders import small_tokenizer, write_pairs


@pytest.fixture
def there(tmp_path):
    """A shard that only a command fetches, which only a setting allows, and these settings."""
    (tmp_path / "there").mkdir()
    (path,) = write_pairs(tmp_path / "there", [3])
    return f"pipe:cat {path}", ["pipe_commands=[cat]", f"cache={tmp_path}/cache"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["shards", "validate"], []),
        (["shards", "inspect"], ["--out", "{}/page.html"]),
        (["shards", "inspect"], ["--out", "{}/page.html", "--config", "{}/run.yaml"]),
        (["tokenizer", "train"], ["{}/tokenizer", "--vocab-size", "512"]),
    ],
)
def test_a_command_fetches_as_it_is_told(tmp_path, there, before, after, capsys):
    (tmp_path / "run.yaml").write_text("data: {shards: [x.tar], tokens_per_batch: 300}\n")
    pattern, settings = there
    command = [*before, pattern, *(word.format(tmp_path) for word in after)]
    assert main(command) == 2
    assert "remote.pipe_commands allows none" in capsys.readouterr().err
    assert main([*command, "--remote", *settings]) == 0
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 1


def test_so_do_embedding_and_validation(there):
    pattern, settings = there
    remote = remote_config(settings)
    assert len(ImageSource([pattern], remote)) == 3
    assert len(CaptionSource([pattern], "txt", remote)) == 3
    batches = validation_batches(
        ValidationDataConfig(shards=[pattern], side=32), small_tokenizer(), 16, 16, remote=remote
    )
    assert sum(map(len, batches)) == 3


def test_settings_are_checked():
    assert remote_config([]) == RemoteConfig()
    assert remote_config(["retries=3", "wait=0.1"]) == RemoteConfig(retries=3, wait=0.1)
    for settings, said in ((["tries=3"], "key tries"), (["retries=-1"], "retries"), (["x"], "key=value")):
        with pytest.raises(ConfigError, match=said):
            remote_config(settings)
