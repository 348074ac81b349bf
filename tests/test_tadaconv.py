"""The TAdaConv operators equal the authors' code (golden vectors) and a naive kernel per frame."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from i2v.tadaconv import RouteFuncMLP, RouteFuncwTransformer, TAdaConv2d, TAdaConv2dV2, conv_over_frames, mean_of_three_frames
from tests.references import authors_weights
from tests.references import tensors as golden


def operator(config):
    """The operator and, for the first version, its routing function."""
    shape = [config[k] for k in ("cin", "cout", "k", "s", "p")]
    options = dict(groups=config["g"], bias=config["bias"], cal_dim=config["cal"])
    if config["op"] == "TAdaConv2d":
        route = RouteFuncMLP(config["cin"], config["ratio"], config["rk"])
        return nn.ModuleDict({"conv": TAdaConv2d(*shape, **options), "conv_rf": route})
    options |= dict(rf_r=config["ratio"], rf_k=config["rk"], head_dim=config["hd"], internal_temp_aggr=config["aggr"])
    return nn.ModuleDict({"conv": TAdaConv2dV2(*shape, **options)})


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("case", [1, 3, 4, 6])
def test_golden(case, dtype, tolerance):
    tensors, config = golden(f"tadaconv-{case}.safetensors")
    model = operator(config)
    model.load_state_dict(authors_weights(tensors))
    model.to(dtype).eval()

    def assert_equal(actual, key):
        # Gradients are sums over many elements: relative to the largest one
        scale = max(1.0, tensors[key].abs().max().item())
        torch.testing.assert_close(actual.float(), tensors[key], atol=tolerance * scale, rtol=0, msg=lambda m: f"{key}: {m}")

    x = tensors["input"].to(dtype).requires_grad_()
    route = model["conv_rf"] if "conv_rf" in model else model["conv"].rf_func
    alpha = route(x)
    for key, value in zip(("alpha", "alpha_bias"), alpha if isinstance(alpha, list) else [alpha]):
        assert_equal(value, key)
    y = model["conv"](x, alpha)
    assert_equal(y, "output")
    if "conv_rf" not in model:
        assert torch.equal(model["conv"](x), y)
    (y * tensors["cotangent"].to(dtype)).sum().backward()
    assert_equal(x.grad, "grad_input")
    gradients = {f"grad/{name}": p.grad for name, p in model.named_parameters()}
    assert set(gradients) == {key for key in tensors if key.startswith("grad/")}
    for key, gradient in gradients.items():
        assert_equal(gradient, key)


def naive_convolution(conv, x, alpha, alpha_bias):
    """A kernel and a bias for every frame of every clip, in one convolution with as many groups."""
    b, _, t, _h, _w = x.shape
    cout, frames = conv.weight.shape[2], rearrange(x, "b c t h w -> 1 (b t c) h w")
    factor = "b c t 1 1 -> b t 1 c 1 1" if conv.cal_dim == "cin" else "b c t 1 1 -> b t c 1 1 1"
    kernels = (rearrange(alpha, factor) * conv.weight).flatten(0, 2)
    biases = None if conv.bias is None else (rearrange(alpha_bias, "b c t 1 1 -> b t c") * conv.bias).flatten()
    y = F.conv2d(frames, kernels, biases, **conv.geometry | dict(groups=conv.geometry["groups"] * b * t))
    return rearrange(y, "1 (b t c) h w -> b c t h w", b=b, t=t, c=cout)


def naive_route(route, x):
    """alpha and alpha_bias of RouteFuncwTransformer with nn's own convolutions and one head after the other."""
    y = route.norm(route.a(x.mean((3, 4), keepdim=True)).movedim(1, -1)).movedim(-1, 1)
    y = y * torch.sigmoid(1.702 * y)
    b, c, t = y.shape[:3]
    qkv = route.qkv_proj(route.norm_transformer(y.movedim(1, -1)).movedim(-1, 1)).view(b, 3, c, t)
    heads, attended = c // route.head_dim, []
    for head in range(heads):
        q, k, v = qkv[:, :, head::heads].transpose(2, 3).unbind(1)  # (B, T, head_dim): channel d * heads + head
        attended.append((q @ k.transpose(1, 2) * c**-0.5).softmax(-1) @ v)
    y = y + route.attn_out(torch.cat(attended, -1).transpose(1, 2)[..., None, None])
    return [route.offset + conv(y) for conv in (route.b, route.b_bias) if conv is not None]


def naive_mean(y):
    """The authors' average pool, whose zeros beyond the ends are counted; torch's own refuses fewer than 3 frames."""
    zeros = torch.zeros_like(y[:, :, :1])
    return F.avg_pool3d(torch.cat((zeros, y, zeros), dim=2), (3, 1, 1), 1)


def randomise(module):
    """Every parameter and statistic random, so that nothing is hidden behind a zero."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5) if "running_var" in name else nn.init.normal_(tensor, std=0.5)
    return module.double().eval()


@settings(max_examples=30, deadline=None)
@given(
    data=st.data(),
    batch=st.integers(1, 3),
    num_frames=st.integers(1, 6),
    channels=st.sampled_from([4, 8, 12]),
    cal_dim=st.sampled_from(["cin", "cout"]),
    bias=st.booleans(),
    aggregate=st.booleans(),
)
def test_v2_equals_a_kernel_per_frame(data, batch, num_frames, channels, cal_dim, bias, aggregate):
    groups = 1 if cal_dim == "cin" else data.draw(st.sampled_from([1, 2, channels]))
    ratio = data.draw(st.sampled_from([1, 2]))
    head_dim = data.draw(st.sampled_from([d for d in range(1, channels + 1) if channels // ratio % d == 0]))
    size, stride, padding, dilation = (data.draw(st.integers(*r)) for r in ((1, 3), (1, 2), (0, 1), (1, 2)))
    conv = randomise(
        TAdaConv2dV2(
            channels,
            channels,
            size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            cal_dim,
            ratio,
            [data.draw(st.sampled_from([1, 3, 5])) for _ in range(2)],
            head_dim,
            internal_temp_aggr=aggregate,
        )
    )
    x = torch.randn(batch, channels, num_frames, 5, 7, dtype=torch.float64)
    alpha, *alpha_bias = naive_route(conv.rf_func, x)
    y = naive_convolution(conv, x, alpha, alpha_bias[0] if bias else alpha)
    if aggregate:
        y = conv.bn_a(y) + conv.bn_b(naive_mean(y))
    torch.testing.assert_close(conv(x), y)
    torch.testing.assert_close(conv(x, [alpha, *alpha_bias] if bias else alpha), y)
    by_frame = rearrange(x, "b c t h w -> b t h w c").contiguous()
    torch.testing.assert_close(conv(rearrange(by_frame, "b t h w c -> b c t h w")), y)  # channels-last tokens


@settings(max_examples=20, deadline=None)
@given(
    cin=st.sampled_from([4, 6]),
    cout=st.sampled_from([4, 8]),
    cal_dim=st.sampled_from(["cin", "cout"]),
    bias=st.booleans(),
    size=st.sampled_from([1, 3]),
    num_frames=st.integers(1, 5),
)
def test_v1_equals_a_kernel_per_frame(cin, cout, cal_dim, bias, size, num_frames):
    conv = randomise(TAdaConv2d(cin, cout, size, padding=size // 2, bias=bias, cal_dim=cal_dim))
    x = torch.randn(2, cin, num_frames, 4, 5, dtype=torch.float64)
    alpha = torch.randn(2, cin if cal_dim == "cin" else cout, num_frames, 1, 1, dtype=torch.float64)
    ones = torch.ones(2, cout, num_frames, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(conv(x, alpha), naive_convolution(conv, x, alpha, ones))


@pytest.mark.parametrize("num_frames", [1, 2, 7])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_shifted_products_equal_conv3d(k, num_frames, bias):
    conv = nn.Conv3d(6, 4, (k, 1, 1), padding=(k // 2, 0, 0), bias=bias).double()
    x = torch.randn(2, num_frames, 3, 6, dtype=torch.float64)
    expected = rearrange(conv(rearrange(x, "b t l c -> b c t l 1")), "b c t l 1 -> b t l c")
    torch.testing.assert_close(conv_over_frames(conv, x), expected)


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_the_temporal_mean_counts_frames_beyond_the_ends_as_zeros(num_frames):
    x = torch.randn(2, 3, num_frames, 4, 5)
    torch.testing.assert_close(mean_of_three_frames(x), naive_mean(x))


def test_a_fresh_v1_is_its_convolution():
    conv, route = TAdaConv2d(8, 6, (1, 3, 3), padding=(0, 1, 1)), RouteFuncMLP(8, 4, [3, 3])
    x = torch.randn(2, 8, 3, 5, 5)
    alpha = route(x)
    assert torch.equal(alpha, torch.ones(2, 8, 3, 1, 1))
    plain = F.conv3d(x, conv.weight[0, 0][:, :, None], conv.bias[0, 0], padding=(0, 1, 1))
    torch.testing.assert_close(conv(x, alpha), plain, atol=1e-5, rtol=0)


def test_the_examples_of_the_docstring():
    x = torch.randn(2, 64, 4, 5, 5)
    conv = TAdaConv2dV2(64, 64, kernel_size=3, padding=1, head_dim=16)
    assert (x + conv(x)).shape == x.shape
    route, conv = RouteFuncMLP(64, ratio=4, kernels=(3, 3)), TAdaConv2d(64, 64, kernel_size=3, padding=1, bias=False)
    assert conv(x, route(x)).shape == x.shape
    with torch.no_grad():  # from a pre-trained 2-D convolution
        conv.load_state_dict({"weight": nn.Conv2d(64, 64, 3).weight[None, None]})


def test_a_fresh_transformer_route_is_one_where_asked():
    x = torch.randn(2, 8, 3, 5, 5)
    for alpha in RouteFuncwTransformer(8, 2, (3, 3), with_bias_cal=True, zero_init_cal=True, head_dim=2)(x):
        assert torch.equal(alpha, torch.ones(2, 8, 3, 1, 1))
    alpha = RouteFuncwTransformer(8, 2, (3, 3), zero_init_cal=False, head_dim=2)(x)
    assert 0 < alpha.abs().max() < 0.5


def test_batch_norms_use_the_batch_in_training_and_their_statistics_in_evaluation():
    conv = randomise(TAdaConv2dV2(8, 8, 3, padding=1, rf_r=2, head_dim=2))
    x = torch.randn(3, 8, 4, 5, 5, dtype=torch.float64)
    y = conv.convolve(x, conv.rf_func(x)[0]) + conv.rf_func(x)[1] * conv.bias.view(-1, 1, 1, 1)
    expected = sum(
        F.batch_norm(z, None, None, bn.weight, bn.bias, training=True)
        for z, bn in ((y, conv.bn_a), (mean_of_three_frames(y), conv.bn_b))
    )
    evaluated, mean = conv(x), conv.bn_a.running_mean.clone()
    torch.testing.assert_close(conv.train()(x), expected)
    torch.testing.assert_close(conv.bn_a.running_mean, 0.9 * mean + 0.1 * y.mean((0, 2, 3, 4)))
    assert not torch.allclose(evaluated, expected)


def test_compiles_without_graph_breaks():
    conv = TAdaConv2dV2(8, 8, 3, padding=1, groups=8, cal_dim="cout", rf_r=2, head_dim=2)
    x = torch.randn(2, 8, 4, 5, 5)
    expected = conv(x)
    torch.testing.assert_close(torch.compile(conv, backend="aot_eager", fullgraph=True)(x), expected)


def test_bf16_autocast_stays_in_bf16():
    conv = TAdaConv2dV2(8, 8, 3, padding=1, rf_r=2, head_dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(torch.randn(2, 8, 4, 5, 5).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TAdaConv2d(4, 4, 3, cal_dim="in"), "must be 'cin' or 'cout', got 'in'"),
        (lambda: TAdaConv2d(4, 4, 3, groups=4), "cannot be used with 4 groups: use cal_dim='cout'"),
        (lambda: TAdaConv2d(4, 6, 3, groups=4, cal_dim="cout"), "must both be multiples of groups 4"),
        (lambda: TAdaConv2d(4, 4, (3, 3, 3)), r"kernel_size must be an int or \(1, height, width\)"),
        (lambda: TAdaConv2d(4, 4, 3, stride=(2, 2, 2)), r"stride must be an int or \(1, height, width\)"),
        (lambda: TAdaConv2d(4, 4, 3, padding=(1, 1)), r"padding must be an int or \(0, height, width\)"),
        (lambda: TAdaConv2dV2(4, 8, 3), "as many input as output channels, got 4 and 8"),
        (lambda: TAdaConv2dV2(8, 8, 3, rf_r=2, head_dim=3), r"routing width 4 \(8 channels, ratio 2\) must be a multiple"),
        (lambda: TAdaConv2dV2(8, 8, 3, rf_r=16, head_dim=1), "ratio must be from 1 to the number of channels, 8, got 16"),
        (lambda: RouteFuncMLP(8, 4, (3, 2)), r"two odd positive integers .* got \(3, 2\)"),
        (lambda: RouteFuncMLP(8, 4, 3), "two odd positive integers .* got 3"),
        (lambda: TAdaConv2dV2(4, 4, 3, internal_rf_func=False)(torch.zeros(1, 4, 2, 5, 5)), "pass alpha"),
        (
            lambda: TAdaConv2d(4, 6, 3, cal_dim="cout")(torch.zeros(1, 4, 2, 5, 5), torch.ones(1, 4, 2, 1, 1)),
            r"shape \(1, 4, 2, 1, 1\) but cal_dim 'cout' takes \(1, 6, 2, 1, 1\)",
        ),
    ],
)
def test_impossible_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
