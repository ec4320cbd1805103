import pytest
import torch
import torch.nn.functional as F

from maypole.core.errors import UnsupportedModel
from maypole.models.block_views import base_model, blocks
from tests.tiny_models import FAMILIES, model_of


@pytest.mark.parametrize("family", FAMILIES)
def test_views_of_the_attention_projections_give_the_attention_inputs(family: str):
    """The output projection applied to what enters it, and q/k/v views against the fused module's own output."""
    model = model_of(family)
    view = blocks(model)
    assert len(view) == 3
    assert view.family == family
    assert view.tied is (family in ("llama", "gemma2", "gemma3_text", "gpt2"))
    block = view[1]
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    parts = [F.linear(x, p.weight, p.bias) for p in (block.q, block.k, block.v)]
    if family == "phi3":
        torch.testing.assert_close(torch.cat(parts, -1), block.attention.qkv_proj(x))
    elif family == "gpt2":
        torch.testing.assert_close(torch.cat(parts, -1), block.attention.c_attn(x))
    elif family == "gpt_neox":
        fused = block.attention.query_key_value(x).view(5, 4, 3, 8)
        for i, part in enumerate(parts):
            torch.testing.assert_close(part.view(5, 4, 8), fused[:, :, i])
    else:
        torch.testing.assert_close(parts[0], block.attention.q_proj(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mlp_is_made_of_its_views(family: str):
    block = blocks(model_of(family))[2]
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    handle = block.down.module.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    out = block.mlp(x)
    handle.remove()
    torch.testing.assert_close(F.linear(seen[0], block.down.weight, block.down.bias), out)
    up = F.linear(x, block.up.weight, block.up.bias)
    assert up.shape[-1] == seen[0].shape[-1] == block.down.weight.shape[1]
    if block.gate is not None:
        act = next(m for n, m in block.mlp.named_children() if "act" in n)
        torch.testing.assert_close(act(F.linear(x, block.gate.weight)) * up, seen[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_writing_a_projection_changes_only_its_own_rows(family: str):
    block = blocks(model_of(family))[0]
    before = {n: getattr(block, n).weight.clone() for n in ("q", "k", "v", "up", "down")}
    with torch.no_grad():
        block.k.write(before["k"] + 1.0)
    for name, weight in before.items():
        now = getattr(block, name).weight
        assert torch.equal(now, weight + 1.0 if name == "k" else weight), name


@pytest.mark.parametrize("family", FAMILIES)
def test_base_model_and_norm_give_the_heads_input(family: str):
    model = model_of(family)
    view, ids = blocks(model), torch.arange(3, 20)[None]
    seen: list[torch.Tensor] = []
    handle = view.final_norm.register_forward_hook(lambda m, args, out: seen.append(out))
    hidden = base_model(model)(input_ids=ids).last_hidden_state
    handle.remove()
    assert torch.equal(seen[0], hidden)


def test_an_unknown_family_is_named_with_the_known_ones():
    from transformers import OPTConfig, OPTForCausalLM

    model = OPTForCausalLM(
        OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(UnsupportedModel, match=r"(?s)'opt'.*families: llama, mistral") as error:
        blocks(model)
    assert error.value.family == "opt"
