"""The SAGE loss in a training loop of one's own: any classifier, any data, one scalar to call backward on.

Here a small network learns to tell a square from a disc in noise; the map marks the shape, as a person would.
"""

import torch
from torch import nn

import lookhere


def draw(count: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images ``b 3 h w``, saliency maps ``b 1 h w`` and labels ``b``."""
    labels = torch.randint(2, (count,))
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    cy, cx = torch.randint(9, size - 9, (2, count, 1, 1))
    square = torch.maximum((y - cy).abs(), (x - cx).abs()) < 6
    disc = (y - cy) ** 2 + (x - cx) ** 2 < 49
    shape = torch.where(labels.view(-1, 1, 1) == 0, square, disc)
    images = torch.randn(count, 3, size, size) + 1.5 * shape[:, None]
    return images, shape[:, None].float(), labels


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        convolution(3, 16), convolution(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)
    )
    sage = lookhere.SAGE(model, batch_norm="clean", views={"kernel": 13, "sigma": 3})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    for step in range(101):
        images, saliency, labels = draw(32)
        loss = sage(images, saliency, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            print(f"step {step:3d} loss {loss.item():.3f} ", {k: round(v.item(), 3) for k, v in sage.parts.items()})

    images, _, labels = draw(500)
    accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    print(f"accuracy on new images: {accuracy.item():.2f}")


if __name__ == "__main__":
    main()
