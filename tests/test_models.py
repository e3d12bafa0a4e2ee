"""The models: published sizes; what other implementations compute with the same weights."""

import copy
import inspect
import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, tiny
from torch import nn
from torchvision.models import resnet18
from torchvision.models.vgg import cfgs, make_layers

from cifarlib import Config, InputError, build_model
from cifarlib.parts import ARCHITECTURES as MODELS, load
from cifarlib.models import count_parameters
from cifarlib.models.cnn import CNN
from cifarlib.models.layers import Conv2d
from cifarlib.models.resnet import ResNet
from cifarlib.models.vgg import VGG
from cifarlib.models.vit import Block, ViT, sincos_positions

LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm)


@pytest.fixture(scope="module")
def published():
    """The models at their published sizes."""
    return {name: build_model(Config(model=name)) for name in MODELS}


def leaves(model):
    """The layers that have weights, in the order in which they run."""
    ran = []
    hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in model.modules() if isinstance(m, LEAVES)]
    with torch.no_grad():
        model(torch.zeros(2, 3, 32, 32, dtype=next(model.parameters()).dtype))
    for hook in hooks:
        hook.remove()
    return ran


@pytest.mark.parametrize("name, parameters", [
    ("cnn", 13_243_146), ("resnet", 11_186_442), ("vgg", 14_728_266), ("vit", 92_502_122)])
def test_published_sizes(published, name, parameters):
    ran = leaves(published[name].eval())
    assert count_parameters(published[name]) == parameters
    assert sum(p.numel() for layer in ran for p in layer.parameters()) == parameters  # nothing has weights but these


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_not_rounded_to_bf16(name):
    model = build_model(tiny(name)).eval()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("name", sorted({*MODELS} - {"speednet"}))
def test_another_seed_gives_other_weights(name):
    """That the same one gives the same weights is tested where they are trained."""
    models = build_model(tiny(name)), build_model(tiny(name, seed=101))
    assert not any(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models)) if a.ndim > 1)


@pytest.mark.parametrize("name", sorted({*MODELS} - {"speednet"}))
def test_weights_start_as_torch_starts_them(name):
    """No initialization of the models' own: the standard deviation of each large layer is that of torch's."""
    for layer in leaves(build_model(tiny(name, model_args={"vit": {"depth": 1, "dim": 64}}.get(name, {})))):
        if layer.weight.numel() > 3000:
            wanted = 1 / math.sqrt(3 * layer.weight[0].numel())  # of a uniform distribution within +-1/sqrt(inputs)
            assert layer.weight.std().item() == pytest.approx(wanted, rel=0.1), layer


def test_speednet_starts_as_its_sources_say():
    """Stem outputs are uncorrelated with variance one, kernels begin with the identity, logits are about one."""
    model, images = build_model(Config(model="speednet")).eval(), torch.randn(200, 3, 32, 32).cumsum(3) / 4
    model.prepare(images)
    outputs = model.stem(images).movedim(1, 0).flatten(1)[:12]  # the others are their negatives
    covariance = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.05, rtol=0)
    torch.testing.assert_close(model.stem.weight[12:], -model.stem.weight[:12])
    maps = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(model.groups[0].first[0](maps)[:, :24], maps)
    assert 0.1 < model(images).std() < 10
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert "stem.weight" not in trained and "stem.bias" in trained and "groups.0.first.2.weight" not in trained
    assert build_model(Config(model="speednet", model_args={"stem": "trained"})).stem.weight.requires_grad


@pytest.mark.parametrize("name, model_args, parameters", [
    ("cnn", {"channels": [4] * 6, "hidden": [32], "dropout": 0.0}, 112 + 5 * 148 + 6 * 8 + 64 * 32 + 32 + 330),
    ("resnet", {"stem": "3x3"}, 11_173_962 + 4_800),  # as it is known, and biases of the convolutions
    ("resnet", {"widths": (8, 16), "depths": (1, 3)}, None),
    ("vgg", {"depth": 11}, 9_231_114), ("vgg", {"depth": 13}, 9_416_010), ("vgg", {"depth": 19}, 20_040_522),
    ("vit", {"patch": 2, "dim": 12, "depth": 1, "heads": 3, "head_dim": 5, "mlp_dim": 7},
     12 + 12 + (12 * 12 + 12) + 24 + 24 + 12 * 45 + 15 * 12 + 24 + (12 * 7 + 7) + (7 * 12 + 12) + 24 + (12 * 10 + 10)),
])
def test_model_args(name, model_args, parameters):
    model = build_model(Config(model=name, model_args=model_args))
    assert parameters in (None, count_parameters(model))


def test_the_sizes_are_the_models_own_parameters():
    for row in MODELS.values():
        assert (*row.sizes, "classes") == tuple(inspect.signature(load(row.home)).parameters)


@pytest.mark.parametrize("name, model_args, said", [
    ("cnn", {"depth": 2}, "channels, hidden, dropout"), ("resnet", {"num_classes": 100}, "widths, depths, stem"),
    ("vit", {"dept": 2}, "patch, dim, depth, heads, head_dim, mlp_dim"),
    ("vit", {"patch": 5, "dim": 16}, "can't be trained on images"), ("vit", {"heads": -1}, "can't be built"),
    ("vit", {"depth": "2"}, "can't be built"), ("cnn", {"channels": [4, 8]}, "can't be built"),
    ("vit", {**TINY["vit"], "heads": 0}, "can't be built"),
    ("vit", {**TINY["vit"], "dim": 4}, "multiple of 4, 8 or more"), ("vit", {**TINY["vit"], "depth": 0}, "1 or more"),
    ("cnn", {"dropout": 1.5}, "can't be built"), ("cnn", {"hidden": 8}, "can't be built"),
    ("resnet", {"widths": [8, 8], "depths": [1]}, "can't be built"),
    ("resnet", {"widths": [], "depths": []}, "can't be built"),
    ("resnet", {"depths": [0, 2, 2, 2]}, "1 block or more"),
    ("resnet", {"widths": [4, 8, 8, 8]}, "8 channels or more"), ("resnet", {"stem": "5x5"}, "stem must be 7x7 or 3x3"),
    ("vgg", {"depth": 12}, "depth must be one of 11, 13, 16, 19"), ("vgg", {"widths": [8, 8]}, "can't be built"),
])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_wrong_model_args_are_one_line(name, model_args, said):
    with pytest.raises(InputError) as caught:
        build_model(Config(model=name, model_args=model_args))
    assert str(caught.value).startswith(f"model_args: {name} ") and said in str(caught.value)


# Other implementations with the same weights.

def shaken(model):
    """In double, with weights, biases and running statistics away from where they start."""
    model, random = model.double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                shift = torch.rand(value.shape, generator=random, dtype=torch.float64)
                value.add_(shift if "var" in name else 0.1 * shift)
    return model


def copy_layers(source, target, order=lambda layers: layers):
    """Give `target` the weights of `source`, layer by layer in the order in which they run; return the pairs."""
    pairs = list(zip(leaves(source.eval()), order(leaves(target.eval())), strict=True))
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict())
    return pairs


def assert_same(ours, theirs, pairs, images, training):
    """Outputs, gradients of all weights and of the images, and running statistics."""
    inputs = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [model.train(training)(x) for model, x in zip((ours, theirs), inputs)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for a, b in pairs:
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
        torch.testing.assert_close(dict(a.named_buffers()), dict(b.named_buffers()))


def biased_resnet18(stem="7x7"):
    """torchvision's ResNet-18 for ten classes, its convolutions with biases as in the published variant."""
    model = resnet18(num_classes=10)
    if stem == "3x3":
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1), nn.Identity()
    for parent in list(model.modules()):
        for name, m in list(parent.named_children()):
            if isinstance(m, nn.Conv2d):
                setattr(parent, name, nn.Conv2d(m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding))
    return model


def torchvisions_vgg(depth, part=1):
    """The convolutions of torchvision's VGG with batch norm and a `part`-th of the channels, and one dense layer."""
    layers = cfgs[{11: "A", 13: "B", 16: "D", 19: "E"}[depth]]
    features = make_layers([layer if layer == "M" else layer // part for layer in layers], batch_norm=True)
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512 // part, 10))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("ours, theirs", [
    *((partial(ResNet, stem=stem), partial(biased_resnet18, stem)) for stem in ("7x7", "3x3")),
    *((partial(VGG, depth, (8, 16, 32, 64, 64)), partial(torchvisions_vgg, depth, 8)) for depth in (11, 13, 19)),
], ids=["7x7", "3x3", "vgg11", "vgg13", "vgg19"])
def test_resnet_and_vgg_are_torchvisions(ours, theirs, training):
    ours, theirs = shaken(ours()), theirs().double()
    pairs = copy_layers(ours, theirs)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert_same(ours, theirs, pairs, images, training)


@pytest.mark.parametrize("name, theirs", [("resnet", biased_resnet18), ("vgg", partial(torchvisions_vgg, 16))])
def test_published_sizes_in_float(published, name, theirs):
    """Where the convolutions with fewer multiplications are at work."""
    ours, theirs = published[name], theirs()
    copy_layers(ours, theirs)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


# Padding up to half the kernel, as wherever a convolution pads; with more, some outputs see nothing of the map.
CONVOLUTIONS = [((size, size), kernel, stride, pad)
                for size, kernel, stride, pad in itertools.product(range(1, 9), (1, 3, 5, 7), (1, 2, 3), range(4))
                if pad <= kernel // 2 and size + 2 * pad >= kernel]
OBLONG = [((1, 4), 3, 1, 1), ((4, 1), 3, 1, 1), ((8, 4), 3, 2, 1), ((5, 8), 3, 2, 1)]


def test_small_map_convolution_is_the_whole_one():
    smaller = 0
    for size, kernel, stride, pad in CONVOLUTIONS + OBLONG:
        ours = Conv2d(2, 3, kernel, stride, pad).double()
        results = []
        for function in (ours, lambda x: F.conv2d(x, ours.weight, ours.bias, stride, pad)):
            random = torch.Generator().manual_seed(1)
            maps = torch.randn(2, 2, *size, dtype=torch.float64, generator=random, requires_grad=True)
            output = function(maps)
            ours.zero_grad()
            output.square().sum().backward()
            results.append((output, maps.grad, ours.weight.grad, ours.bias.grad))
        torch.testing.assert_close(*results, msg=lambda text: f"{size=} {kernel=} {stride=} {pad=}: {text}")
        smaller += bool((results[0][2] == 0).all(dim=(0, 1)).any())
    assert smaller > 20  # of the cases had kernel weights to leave out


def test_maps_and_gradients_stay_channels_last(published):
    """Batch norm takes several times as long on others."""
    model, norms = copy.deepcopy(published["resnet"]).to(memory_format=torch.channels_last), []
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.register_forward_hook(lambda module, inputs, output: norms.append(inputs[0]))
        norm.register_full_backward_pre_hook(lambda module, gradients: norms.append(gradients[0]))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    model.train()(images).square().sum().backward()
    assert len(norms) == 40
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in norms)


@pytest.mark.parametrize("inside, outside, maps, bias, bf16", [
    (96, 160, (2, 8, 8), True, False), (128, 96, (3, 4, 12), False, False), (97, 96, (1, 4, 4), True, False),
    (48, 96, (2, 8, 8), True, False), (192, 256, (4, 8, 8), True, True), (256, 192, (3, 4, 6), True, True)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_winograds_filtering_is_the_convolution(inside, outside, maps, bias, bf16, layout, monkeypatch):
    """Outputs and gradients against torch's convolution in double; in bf16 off by less than the spacing of numbers."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    ours = Conv2d(inside, outside, 3, padding=1, bias=bias).to(memory_format=layout)
    generator = torch.Generator().manual_seed(1)
    dtype, tolerance = (torch.bfloat16, 2**-7) if bf16 else (torch.float32, 1e-5)
    x = torch.randn(maps[0], inside, *maps[1:], generator=generator).to(dtype, memory_format=layout).requires_grad_()
    weights = [x, *ours.parameters()]
    doubles = [tensor.detach().double().requires_grad_() for tensor in weights]
    wanted = F.conv2d(*doubles, padding=1)
    upstream = torch.randn(wanted.shape, generator=generator).to(dtype)
    wanted.backward(upstream.double())
    monkeypatch.setattr(nn.Conv2d, "forward", None)  # so that it can't be what is compared
    with torch.autocast("cpu", enabled=bf16):
        output = ours(x)
    assert output.dtype == dtype
    output.backward(upstream)
    results = [(output, wanted), *((single.grad, double.grad) for single, double in zip(weights, doubles, strict=True))]
    for found, exact in results:
        assert (found - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("channels, side, stride, dtype, bf16", [
    (64, 8, 1, torch.float32, False), (96, 6, 1, torch.float32, False), (96, 16, 2, torch.float32, False),
    (96, 8, 1, torch.float64, False), (96, 8, 1, torch.float32, True),
])
def test_convolutions_that_winograds_filtering_does_not_serve_are_torchs(channels, side, stride, dtype, bf16):
    layer, x = Conv2d(channels, channels, 3, stride, 1).to(dtype), torch.randn(2, channels, side, side, dtype=dtype)
    with torch.autocast("cpu", enabled=bf16):
        assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))


def plain_cnn(layers, images, training):
    """CNNBasic as plain functions, without dropout."""
    convolutions, norms, dense = ([layer for layer in layers if isinstance(layer, kind)]
                                  for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
    x = images
    for i, (c, n) in enumerate(zip(convolutions, norms)):
        x = F.conv2d(x, c.weight, c.bias, padding=1)
        x = F.gelu(F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, training))
        x = F.max_pool2d(x, 2) if i % 2 else x
    x = x.reshape(len(x), -1)
    for layer in dense[:-1]:
        x = F.gelu(x @ layer.weight.T + layer.bias)
    return x @ dense[-1].weight.T + dense[-1].bias


@pytest.mark.parametrize("training", [False, True])
def test_cnn_is_its_plain_functions(training):
    model = shaken(CNN(**TINY["cnn"], dropout=0.0))
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    wanted = plain_cnn(leaves(model.eval()), images, training)
    torch.testing.assert_close(model.train(training)(images), wanted)


def test_cnn_drops_out_15_percent_after_the_convolutions_and_the_dense_layers(published):
    layers = [*published["cnn"].features, *published["cnn"].classifier]
    dropouts = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Dropout)]
    assert [layers[i].p for i in dropouts] == [0.15] * 4
    assert [type(layers[i - 1]) for i in dropouts] == [nn.MaxPool2d, nn.GELU, nn.GELU, nn.GELU]


@pytest.mark.parametrize("dim, heads", [(24, 3), (16, 1)])
def test_vit_block_is_torchs_encoder_layer(dim, heads):
    ours = shaken(Block(dim, heads, dim // heads, 40))
    theirs = nn.TransformerEncoderLayer(dim, heads, 40, 0.0, "gelu", batch_first=True, norm_first=True).double()
    attention, (norm, linear, _, out) = ours.attention, ours.feed_forward
    pairs = [(attention.norm, theirs.norm1), (norm, theirs.norm2), (linear, theirs.linear1), (out, theirs.linear2)]
    for a, b in pairs:
        b.load_state_dict(a.state_dict())
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(attention.qkv.weight)
        theirs.self_attn.out_proj.weight.copy_(attention.out.weight)
        theirs.self_attn.in_proj_bias.zero_()
        theirs.self_attn.out_proj.bias.zero_()
    assert_same(ours, theirs, pairs, torch.randn(2, 9, dim, dtype=torch.float64), training=True)
    torch.testing.assert_close(attention.qkv.weight.grad, theirs.self_attn.in_proj_weight.grad)
    torch.testing.assert_close(attention.out.weight.grad, theirs.self_attn.out_proj.weight.grad)


@pytest.mark.parametrize("side, dim", [(8, 2048), (4, 16)])
def test_positions_are_the_closed_form(side, dim):
    positions, quarter = sincos_positions(side, dim), dim // 4
    assert positions.shape == (side * side, dim)
    for index, i in itertools.product(range(side * side), range(0, quarter, max(1, quarter // 16))):
        row, column = divmod(index, side)
        wanted = [f(x / 10_000 ** (i / (quarter - 1))) for x in (column, row) for f in (math.sin, math.cos)]
        assert positions[index, i::quarter].tolist() == pytest.approx(wanted, abs=1e-5)


def test_vit_is_its_parts():
    """Embedding, positions, blocks, final norm, mean over the patches, head."""
    model = shaken(ViT(**TINY["vit"]))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    patches = F.unfold(images, 8, stride=8).view(2, 3, 64, 16).permute(0, 3, 2, 1).reshape(2, 16, 192)
    tokens = model.embed(patches) + sincos_positions(4, 16)
    for block in model.blocks:
        tokens = block(tokens)
    tokens = F.layer_norm(tokens, [16], model.norm.weight, model.norm.bias)
    logits = tokens.mean(dim=1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), logits, rtol=1e-6, atol=1e-6)


def test_checkpoints_of_the_vit_hold_weights_only():
    model = build_model(tiny("vit"))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
