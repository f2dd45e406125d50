"""One loss of itmkit in a plain PyTorch loop, with mixed precision and torch.compile.

Two heads learn to align two views. Run: python examples/hect_in_a_plain_loop.py
The compiler needs a C++ compiler on a CPU; ``main(backend="eager")`` does without.
"""

import torch
from torch import nn

from itmkit.losses import HECTLoss
from itmkit.metrics.functional import cross_modal_recall


def main(steps: int = 200, backend: str = "inductor") -> dict[str, float]:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.float16 if device == "cuda" else torch.bfloat16
    # Features of 512 "images" and "texts" that share a hidden cause, as an encoder would give them.
    cause = torch.randn(512, 16)
    images = (cause @ torch.randn(16, 64) + 0.5 * torch.randn(512, 64)).to(device)
    texts = (cause @ torch.randn(16, 32) + 0.5 * torch.randn(512, 32)).to(device)
    ids = torch.arange(512, device=device)

    image_head, text_head = nn.Linear(64, 32).to(device), nn.Linear(32, 32).to(device)
    for head in (image_head, text_head):
        head.compile(backend=backend)  # in place: names in the state dict stay
    loss_of = HECTLoss(margin=1.0, temperature=0.5, num_hard_negatives=5)
    optimizer = torch.optim.Adam([*image_head.parameters(), *text_head.parameters()], lr=1e-2)
    scaler = torch.amp.GradScaler(device, enabled=half == torch.float16)
    for _ in range(steps):
        rows = torch.randint(0, 400, (64,), device=device)
        with torch.autocast(device, half):  # the loss computes in float32 by itself
            loss = loss_of(image_head(images[rows]), text_head(texts[rows]), image_ids=rows)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    with torch.no_grad():
        image = nn.functional.normalize(image_head(images[400:]), dim=1)
        text = nn.functional.normalize(text_head(texts[400:]), dim=1)
    recall = cross_modal_recall(image @ text.T, ids[400:], ids[400:])
    print(f"R@1 of 112 unseen pairs: {recall['i2t_r1']:.1f} / {recall['t2i_r1']:.1f}")
    return recall


if __name__ == "__main__":
    main()
