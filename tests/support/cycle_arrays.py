"""CycleGAN once more, in NumPy and float64, from the paper and the facts of the official code; independent of trainer/.

Networks are dictionaries of arrays under the names of ours, `layers.1.weight`. One image a domain, or several.
"""

import numpy as np

from tests.support.backwards import (
    chain,
    convolution,
    instance_norm,
    leaky,
    mean_absolute,
    mean_square,
    reflect,
    residual,
    tanh,
    transposed,
)


def translate(params, grads, x, blocks):
    """(images, back). Numbers are places in the official nn.Sequential: pads, norms and ReLUs are counted."""

    def norm(number):
        return instance_norm(params, grads, f"layers.{number}")

    relu = leaky(0.0)
    layers = [reflect(3), convolution(params, grads, "layers.1"), norm(2), relu]
    layers += [convolution(params, grads, "layers.4", 2, 1), norm(5), relu]
    layers += [convolution(params, grads, "layers.7", 2, 1), norm(8), relu]
    for block in range(10, 10 + blocks):
        body = f"layers.{block}.body"
        layers.append(
            residual(
                reflect(1),
                convolution(params, grads, f"{body}.1"),
                instance_norm(params, grads, f"{body}.2"),
                relu,
                reflect(1),
                convolution(params, grads, f"{body}.5"),
                instance_norm(params, grads, f"{body}.6"),
            )
        )
    at = 10 + blocks
    layers += [transposed(params, grads, f"layers.{at}"), norm(at + 1), relu]
    layers += [transposed(params, grads, f"layers.{at + 3}"), norm(at + 4), relu]
    layers += [reflect(3), convolution(params, grads, f"layers.{at + 7}"), tanh]
    return chain(x, *layers)


def judge(params, grads, x, layers, padding=1):
    """(scores, back): 4x4 convolutions, `layers` of stride 2 and two of stride 1, no norm in the first and last."""
    parts = [convolution(params, grads, "layers.0", 2, padding), leaky(0.2)]
    at = 2
    for number in range(1, layers + 1):
        stride = 2 if number < layers else 1
        parts += [
            convolution(params, grads, f"layers.{at}", stride, padding),
            instance_norm(params, grads, f"layers.{at + 1}"),
            leaky(0.2),
        ]
        at += 3
    return chain(x, *parts, convolution(params, grads, f"layers.{at}", 1, padding))


def generators_loss(nets, a, b, form, cycle=(10.0, 10.0), identity=0.5, movers=("a_to_b", "b_to_a")):
    """(named losses, gradients by network, the images made for a and for b)."""
    grads = {name: ({} if name in movers else None) for name in ("a_to_b", "b_to_a")}
    blocks, layers, padding = form

    def run(name, x):
        return translate(nets[name], grads[name], x, blocks)

    fake_b, back_fake_b = run("a_to_b", a)
    again_a, back_again_a = run("b_to_a", fake_b)
    fake_a, back_fake_a = run("b_to_a", b)
    again_b, back_again_b = run("a_to_b", fake_a)
    parts, total = {}, 0.0
    d_fake = {"a_to_b": np.zeros_like(fake_b), "b_to_a": np.zeros_like(fake_a)}
    for name, judged, fake in (("a_to_b", "b", fake_b), ("b_to_a", "a", fake_a)):
        if name in movers:
            scores, back = judge(nets[f"discriminator_{judged}"], None, fake, layers, padding)
            parts[f"adversarial_{judged}"], slope = mean_square(scores, 1.0)
            total += parts[f"adversarial_{judged}"]
            d_fake[name] += back(slope)
    for weight, domain, again, real, back, name in (
        (cycle[0], "a", again_a, a, back_again_a, "a_to_b"),
        (cycle[1], "b", again_b, b, back_again_b, "b_to_a"),
    ):
        parts[f"cycle_{domain}"], slope = mean_absolute(again, real)
        total += weight * parts[f"cycle_{domain}"]
        d_fake[name] += back(weight * slope)
    back_fake_b(d_fake["a_to_b"])
    back_fake_a(d_fake["b_to_a"])
    for name, weight, domain, real in (("a_to_b", cycle[1], "b", b), ("b_to_a", cycle[0], "a", a)):
        if identity and name in movers:
            same, back = run(name, real)
            parts[f"identity_{domain}"], slope = mean_absolute(same, real)
            total += weight * identity * parts[f"identity_{domain}"]
            back(weight * identity * slope)
    return (
        {"loss": total, **parts},
        {name: found for name, found in grads.items() if found is not None},
        (fake_a, fake_b),
    )


def discriminator_loss(net, real, fake, form, weight=0.5):
    """(loss, gradients)."""
    grads = {}
    of_real, back_real = judge(net, grads, real, *form[1:])
    of_fake, back_fake = judge(net, grads, fake, *form[1:])
    (one, d_real), (zero, d_fake) = mean_square(of_real, 1.0), mean_square(of_fake, 0.0)
    back_real(weight * d_real)
    back_fake(weight * d_fake)
    return weight * (one + zero), grads


class ListPool:
    """util/image_pool.py's rule with lists, for coins and slots that are given."""

    def __init__(self, size):
        self.size, self.images = size, []

    def query(self, image, heads, slot):
        if len(self.images) < self.size:
            self.images.append(image)
            return image
        if self.size and heads:
            old, self.images[slot] = self.images[slot], image
            return old
        return image
