"""Fine-tune a CLIP-like model with LoRA: a few small matrices learn, all other weights stay.

Run: pip install 'itmkit[lora]', then
python examples/lora.py google/siglip2-base-patch16-224 dataset.json photos/ tuned/
`itmkit.load("tuned/")` takes the result, in which LoRA is merged into the weights.
"""

import sys
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from peft import LoraConfig, get_peft_model
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from itmkit.data import ImageTextData, KarpathyDataset, Preprocessing, TransformersTokenizer
from itmkit.systems import DualEncoder


def main(
    name: str, annotations: str, images: str, output: str, batch_size: int = 32, **trainer: Any
) -> DualEncoder:
    tokenizer = TransformersTokenizer(name)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    tuned = get_peft_model(AutoModel.from_pretrained(name), lora)
    model = DualEncoder(tuned, pad_id=tokenizer.pad_id)

    own = Preprocessing.for_transformers(name, size=model.clip.image_size)
    photos = partial(KarpathyDataset, annotations=annotations, images=images, preprocessing=own)
    data = ImageTextData(photos, tokenizer, batch_size=batch_size)
    Trainer(**{"max_epochs": 1, **trainer}).fit(model, data)

    tuned.merge_and_unload().save_pretrained(output)
    AutoTokenizer.from_pretrained(name).save_pretrained(output)
    AutoImageProcessor.from_pretrained(name).save_pretrained(output)
    return model


if __name__ == "__main__":
    main(*sys.argv[1:5])
