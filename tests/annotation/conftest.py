import os

import numpy as np
import pytest
from PIL import Image

from unipixel_jax.demo import ASSETS
from unipixel_jax.infer.annotating import Annotator

# The only files that Label Studio's local storage holds; its SDK reads the variable when it is imported.
os.environ["LOCAL_FILES_DOCUMENT_ROOT"] = str(ASSETS)

@pytest.fixture(scope="session")
def annotator():
    return Annotator.from_settings({"dtype": "float32"})


@pytest.fixture(scope="session")
def photo():
    with Image.open(ASSETS / "photo.png") as image:
        return np.asarray(image.convert("RGB"))
