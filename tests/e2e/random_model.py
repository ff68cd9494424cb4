"""A tiny UniPixel with random weights."""

from pathlib import Path

from flax import nnx

from unipixel_jax.config import preset
from unipixel_jax.infer.loading import LoadedModel
from unipixel_jax.infer.predictor import UniPixel
from unipixel_jax.models.unipixel import UniPixelModel
from unipixel_jax.processing.tokenizer import Tokenizer

TOKENIZER = Path(__file__).parents[1] / "recordings" / "processing" / "tokenizer"


def random_model(seed: int) -> UniPixel:
    """A model of the preset "tiny" with weights drawn from a seed."""
    config = preset("tiny")
    tokenizer = Tokenizer.from_directory(TOKENIZER)
    tokenizer.check(config)
    return UniPixel(LoadedModel(UniPixelModel(config, nnx.Rngs(seed)), config, tokenizer, (tokenizer.eos_id,)).for_inference())


def silent_model(seed: int) -> UniPixel:
    """A random model that never says <|seg|> itself, so the prompt alone decides how many objects there are."""
    model = random_model(seed)
    head = model.loaded.model.text.head.weight
    head[...] = head[...].at[model.config.seg_token_id].set(0)
    return model
