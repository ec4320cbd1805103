"""Attention to some of the keys, joined, is attention to all of them; torch's kernel and plain operations agree."""

import pytest
import torch

from maypole.engine import partial_attention as partial
from maypole.models.packing import documents
from maypole.models.plan import AttentionSpec

DEVICES = [torch.device("cpu")] + [torch.device("cuda", i) for i in range(min(torch.cuda.device_count(), 1))]


def drawn(*shape: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(("heads", "kv", "softcap"), [(4, 4, None), (6, 2, None), (4, 2, 5.0)])
def test_two_parts_joined_are_the_whole(device: torch.device, heads: int, kv: int, softcap: float | None):
    spec = AttentionSpec(layer=0, scaling=0.3, softcap=softcap)
    q = drawn(7, heads, 16, device=device)
    k, v = drawn(kv, 900, 16, device=device, seed=1), drawn(kv, 900, 16, device=device, seed=2)
    whole, logsum = partial.together(q, k, v, spec)
    out, weight = partial.joined(
        partial.together(q, k[:, :40], v[:, :40], spec), partial.together(q, k[:, 40:], v[:, 40:], spec)
    )
    assert torch.allclose(out, whole, atol=1e-5)
    assert torch.allclose(weight, logsum, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("blind", [False, True])
def test_hidden_keys_do_not_count_however_many_there_are(device: torch.device, blind: bool):
    spec = AttentionSpec(layer=0, scaling=0.3)
    q = drawn(5, 6, 16, device=device)
    k, v = drawn(3, 1300, 16, device=device, seed=1), drawn(3, 1300, 16, device=device, seed=2)
    mask = torch.zeros(5, 1300, dtype=torch.bool, device=device)
    mask[:, 1200:] = True  # a kernel that goes through the keys block by block sees nothing at first
    mask[2, :1299] = False
    out, logsum = partial.together(q, k, v, spec, partial.Seen(mask, blind))
    for i in range(5):
        wanted = partial.together(q[i : i + 1], k[:, mask[i]], v[:, mask[i]], spec)
        assert torch.allclose(out[i : i + 1], wanted[0], atol=1e-5)
        assert torch.allclose(logsum[i : i + 1], wanted[1], atol=1e-5)


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("hidden", [False, True])
def test_keys_read_in_order_are_attended_to_as_by_the_kernel(heads: int, kv: int, hidden: bool):
    spec = AttentionSpec(layer=0, scaling=0.3)
    q = drawn(5, kv, heads // kv, 16, device=DEVICES[0])
    k, v = (drawn(5, kv, 64, 16, device=DEVICES[0], seed=i)[:, :, :50] for i in (1, 2))
    ends = torch.tensor([50, 1, 17, 3, 49])
    seen = torch.arange(50) < ends[:, None]
    bias = partial.bias_of(seen, q.dtype)[:, None, None] if hidden else None
    wanted, sums = partial.explicit(q, k, v, spec, bias)
    out, logsum = partial.in_order(q, k, v, spec, bias, partly=True)
    assert torch.allclose(out, wanted, atol=1e-5)
    assert logsum is not None
    assert torch.allclose(logsum, sums, atol=1e-5)
    assert torch.equal(partial.in_order(q, k, v, spec, bias, partly=False)[0], out)


def test_who_sees_no_key_adds_nothing():
    spec = AttentionSpec(layer=0, scaling=0.3)
    q, k = drawn(2, 2, 8, device=DEVICES[0]), drawn(2, 5, 8, device=DEVICES[0], seed=1)
    own = partial.together(q, k, k, spec)
    nothing = partial.together(q, k, k, spec, partial.Seen(torch.zeros(2, 5, dtype=torch.bool), blind=True))
    assert torch.equal(partial.joined(own, nothing)[0], own[0])


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (None, 5.0), (6, 5.0)])
def test_documents_attend_as_in_a_packed_plan(
    device: torch.device, heads: int, kv: int, window: int | None, softcap: float | None
):
    spec = AttentionSpec(layer=0, scaling=0.3, sliding_window=window, softcap=softcap)
    plan = documents([3, 40, 16, 16, 300]).to(device)
    q = drawn(375, heads, 16, device=device)
    k, v = drawn(375, kv, 16, device=device, seed=1), drawn(375, kv, 16, device=device, seed=2)
    out, logsum = partial.documents(plan, q, k, v, spec)
    assert torch.allclose(out, plan.attend(q, k, v, spec), atol=1e-5)
    if window is None:  # the last token sees its whole document
        last = (x[75:].transpose(0, 1) for x in (k, v))
        assert torch.allclose(logsum[374:], partial.together(q[374:], *last, spec)[1], atol=1e-5)


def test_this_torch_has_the_kernel_for_cpus():
    assert partial._agrees(torch.device("cpu"), torch.float32)
