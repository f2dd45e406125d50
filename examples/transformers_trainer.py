"""Fine-tune a CLIP-like model with a loss of itmkit in the Trainer of transformers.

Run: pip install 'itmkit[accelerate]', then
python examples/transformers_trainer.py openai/clip-vit-base-patch32 dataset.json photos/ tuned/
`itmkit.load("tuned/")` takes the result.
"""

import sys
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from itmkit.data import KarpathyDataset
from itmkit.losses import HECTLoss


class ITMTrainer(Trainer):
    """A Trainer whose batches have ``image_ids``: captions of one image are not negatives."""

    itm_loss = HECTLoss(margin=1.0, temperature=0.5)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        image_ids = inputs.pop("image_ids")
        outputs = model(**inputs)
        loss = self.itm_loss(outputs.image_embeds, outputs.text_embeds, image_ids)
        return (loss, outputs) if return_outputs else loss


def main(name: str, annotations: str, images: str, output: str, **options: Any) -> float:
    processor = AutoProcessor.from_pretrained(name)
    split = KarpathyDataset("train", annotations, images)

    def collate(rows: list[int]) -> dict[str, Any]:
        ids = split.caption_images[rows]
        pictures = [Image.open(f"{images}/{split.names[i]}").convert("RGB") for i in ids.tolist()]
        texts = [split.captions[row] for row in rows]
        limit = {"truncation": True, "max_length": 64, "padding": True}
        batch = processor(images=pictures, text=texts, return_tensors="pt", **limit)
        return {**batch, "image_ids": ids}

    # Otherwise the Trainer drops what the model's forward does not take.
    arguments = TrainingArguments(
        output, remove_unused_columns=False, save_strategy="no", **options
    )
    rows, model = list(range(len(split.captions))), AutoModel.from_pretrained(name)
    trainer = ITMTrainer(model, arguments, collate, train_dataset=rows)
    result = trainer.train()
    trainer.save_model()
    processor.save_pretrained(output)
    return result.training_loss


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:5])
