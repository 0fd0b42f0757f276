"""What is drawn depends on seed, epoch and key alone, and text is drawn where it should be."""

import pytest

from navit_clip.data.draws import SampleRandom, check_template, draw_text, fill_template, seed_of
from navit_clip.errors import ConfigError


def test_a_seed_is_the_same_everywhere_and_for_ever():
    assert seed_of("sample", 0, 1, "shard/key") == 0x66BD71029F25377250309681869247A2


def test_words_do_not_run_together():
    assert len({seed_of("a", "b"), seed_of("ab"), seed_of("b", "a"), seed_of("a", "b", "")}) == 4


def test_seed_epoch_and_key_each_matter():
    draws = {
        SampleRandom(*words).integers(2**62) for words in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]
    }
    assert len(draws) == 4
    assert SampleRandom(0, 0, "a").integers(2**62) in draws


def test_uniform_draws_do_not_end_and_leave_the_other_distributions_alone():
    random = SampleRandom(0, 0, "a")
    drawn = [random.random() for _ in range(1000)]
    assert len(set(drawn)) == 1000
    assert all(0 <= number < 1 for number in drawn)
    assert 0.45 < sum(drawn) / 1000 < 0.55
    first, later = SampleRandom(0, 0, "b"), SampleRandom(0, 0, "b")
    later.random()
    assert first.normal(0.0, 1.0) == later.normal(0.0, 1.0)


def test_captions_and_templates_are_drawn_independently():
    captions, templates = ("a", "b"), ("{}", "a photo of {}")
    drawn = [draw_text(captions, (), templates, SampleRandom(0, 0, str(key))) for key in range(400)]
    assert {(caption, text) for caption, text in drawn} == {
        (caption, fill_template(template, caption)) for caption in captions for template in templates
    }


def test_a_caption_goes_into_its_template_as_it_is():
    assert fill_template("a photo of {}.", "{x} {}") == "a photo of {x} {}."


@pytest.mark.parametrize("template", ["", "a photo", "{} {}", "{0}"])
def test_a_template_has_one_place(template):
    with pytest.raises(ConfigError, match=r"^templates: expected one \{\}, where the caption goes, found '"):
        check_template(template, key="templates")


def test_captions_are_drawn_by_their_chances():
    drawn = [
        draw_text(("a", "b"), (0.25, 0.75), ("{}",), SampleRandom(0, 0, str(key)))[0] for key in range(400)
    ]
    assert 70 < drawn.count("a") < 130
