"""What a recipe may ask of a model: the mistakes that planning does not meet."""

import pytest

from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.training.checks import check_balance


def test_a_frozen_language_model_has_a_bias_that_stays(make_recipe, small_folder):
    config = DeepseekVLV2Config.from_json(small_folder)
    check_balance(config, make_recipe(bias_update_speed=0.01))
    check_balance(config, make_recipe(language={"mode": "frozen"}))
    frozen = make_recipe(bias_update_speed=0.01, language={"mode": "frozen"})
    with pytest.raises(ValueError, match=r"bias_update_speed is 0\.01, but the language model is frozen"):
        check_balance(config, frozen)
