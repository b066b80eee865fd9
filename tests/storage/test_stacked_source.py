"""StackedSource: which tensor of a stack is which of its sources."""

import pytest
import torch

from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.core.model_space import lone
from evomerge.errors import ModelSpaceError, SourceError
from evomerge.merging.source import TensorSource
from evomerge.storage.model_folder import ModelFolder
from evomerge.storage.stacked_source import StackedSource

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
CONFIG = {"architectures": ["LlamaForCausalLM"]}


def llama(seed, n_layers=3, *, width=4, head=True, dtype=torch.float32):
    noise = torch.Generator().manual_seed(seed)
    shapes = {EMBED: (7, width), NORM: (width,)} | ({HEAD: (7, width)} if head else {})
    for layer in range(n_layers):
        inside = {
            "self_attn.q_proj.weight": (width, width),
            "self_attn.o_proj.weight": (width, width),
            "self_attn.o_proj.bias": (width,),
            "mlp.experts.2.w2.weight": (width, width),
            "input_layernorm.weight": (width,),
        }
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in inside.items()}
    return {n: torch.randn(s, generator=noise).to(dtype) for n, s in shapes.items()}


@pytest.fixture
def open_model(tmp_path, save_model):
    def open(name, tensors, **config):
        return ModelFolder(name, save_model(tmp_path / name, tensors, CONFIG | config))

    return open


def test_layers_come_from_where_the_plan_says(open_model):
    a, b = llama(0, 3), llama(1, 2)
    sources = {"a": open_model("a", a), "b": open_model("b", b)}
    plan = LayerPlan((LayerSlot("a", 2), LayerSlot("b", 1), LayerSlot("a", 2)), "a", "b")
    stack: TensorSource = StackedSource("s", plan, sources)
    header = stack.header()
    assert len(header.tensors) == 3 + 3 * 5
    assert all(spec.name == name for name, spec in header.tensors.items())
    wanted = {EMBED: a[EMBED], NORM: b[NORM], HEAD: b[HEAD]}
    for layer, (tensors, old) in enumerate([(a, 2), (b, 1), (a, 2)]):
        for inner in ("self_attn.o_proj.weight", "mlp.experts.2.w2.weight"):
            wanted[f"model.layers.{layer}.{inner}"] = tensors[f"model.layers.{old}.{inner}"]
    for name, tensor in wanted.items():
        assert torch.equal(stack.read(name), tensor)
        assert torch.equal(stack.read_range(name, 1, 3), tensor.flatten()[1:3])
    query = "model.layers.1.self_attn.q_proj.weight"
    assert header.digests[query] == sources["b"].fingerprint()[query]
    assert stack.exact_delta(EMBED) is None
    assert lone(header).merged[0].spec.name == EMBED
    with pytest.raises(SourceError, match=r"s: has no tensor 'model.layers.3"):
        stack.read("model.layers.3.input_layernorm.weight")


def test_reading_copies_nothing(open_model):
    source = open_model("a", llama(0))
    stack = StackedSource("s", LayerPlan.whole("a", 3), {"a": source})
    name = "model.layers.1.self_attn.o_proj.weight"
    assert stack.read(name).data_ptr() == source.read(name).data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_reaches_the_ends_of_attention_and_mlp_with_one_rounding(open_model, dtype):
    tensors = llama(0, dtype=dtype)
    source = open_model("a", tensors)
    plan = LayerPlan((LayerSlot("a", 1), LayerSlot("a", 1, 0.3)), "a", "a")
    stack = StackedSource("s", plan, {"a": source})
    for inner in ("self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.experts.2.w2.weight"):
        old, new = tensors[f"model.layers.1.{inner}"], f"model.layers.1.{inner}"
        expected = (old.double() * 0.3).float() if dtype == torch.float32 else old.float() * 0.3
        torch.testing.assert_close(stack.read(new), expected.to(dtype), rtol=2e-7, atol=0.0)
        assert torch.equal(stack.read_range(new, 0, 2), stack.read(new).flatten()[:2])
        assert torch.equal(stack.read(f"model.layers.0.{inner}"), old)
        assert stack.header().digests[new] != source.fingerprint()[new]
    for inner in ("self_attn.q_proj.weight", "input_layernorm.weight"):
        assert torch.equal(
            stack.read(f"model.layers.1.{inner}"), tensors[f"model.layers.1.{inner}"]
        )


def test_the_digest_is_of_the_content_and_not_of_the_names_of_sources(open_model):
    tensors = llama(0)
    a, b = open_model("a", tensors), open_model("b", tensors)
    one = StackedSource("s", LayerPlan.whole("a", 3), {"a": a})
    other = StackedSource("t", LayerPlan.whole("b", 3), {"b": b})
    scaled = LayerPlan((LayerSlot("a", 0), LayerSlot("a", 1), LayerSlot("a", 2, 0.5)), "a", "a")
    assert one.digest == other.digest == a.digest
    assert StackedSource("s", scaled, {"a": a}).digest != one.digest


def test_a_head_stays_tied_unless_one_end_stores_its_own(open_model):
    tied = open_model("tied", llama(0, head=False), tie_word_embeddings=True)
    own = open_model("own", llama(1), tie_word_embeddings=False)
    sources = {"tied": tied, "own": own}
    assert tied.header().tied == {HEAD: EMBED}

    def stack(stem, tail):
        return StackedSource("s", LayerPlan((LayerSlot("own", 0),), stem, tail), sources)

    both = stack("tied", "tied")
    assert both.header().tied == {HEAD: EMBED}
    assert HEAD not in both.header().tensors
    assert torch.equal(both.read(HEAD), tied.read(EMBED))
    for stem, tail, head in (("own", "tied", tied.read(EMBED)), ("tied", "own", own.read(HEAD))):
        mixed = stack(stem, tail)
        assert mixed.header().tied == {}
        assert mixed.header().tensors[HEAD].name == HEAD
        assert torch.equal(mixed.read(HEAD), head)


def test_what_cannot_be_stacked_is_refused(open_model, tmp_path, save_model):
    a = open_model("a", llama(0))
    wide = open_model("wide", llama(1, width=8))
    plan = LayerPlan((LayerSlot("a", 0), LayerSlot("wide", 0)), "a", "a")
    with pytest.raises(
        ModelSpaceError, match=r"input_layernorm.weight is \(4,\) in 'a', \(8,\) in 'wide'"
    ):
        StackedSource("s", plan, {"a": a, "wide": wide})
    other = ModelFolder("g", save_model(tmp_path / "g", llama(2), {"architectures": ["Gemma"]}))
    plan = LayerPlan((LayerSlot("a", 0), LayerSlot("g", 0)), "a", "a")
    with pytest.raises(ModelSpaceError, match=r"different architectures"):
        StackedSource("s", plan, {"a": a, "g": other})
    flat = open_model("flat", {EMBED: torch.ones(3, 4)})
    with pytest.raises(ModelSpaceError, match=r"no layers were found in 'flat'"):
        StackedSource("s", LayerPlan((LayerSlot("flat", 0),), "flat", "flat"), {"flat": flat})
    holes = open_model("holes", {"model.layers.1.mlp.down_proj.weight": torch.ones(2, 2)})
    with pytest.raises(ModelSpaceError, match=r"'holes' has no tensors in layer 0"):
        StackedSource("s", LayerPlan.whole("holes", 1), {"holes": holes})
    two = open_model("two", llama(3) | {"vision.blocks.0.mlp.fc1.weight": torch.ones(2, 2)})
    with pytest.raises(ModelSpaceError, match=r"several stacks of layers"):
        StackedSource("s", LayerPlan.whole("two", 1), {"two": two})


def test_a_scale_that_a_norm_would_undo_is_refused(open_model):
    norm = {"model.layers.0.post_feedforward_layernorm.weight": torch.ones(4)}
    a = open_model("a", llama(0, 1) | norm)
    StackedSource("s", LayerPlan((LayerSlot("a", 0),), "a", "a"), {"a": a})
    with pytest.raises(ModelSpaceError, match=r"post_feedforward_layernorm.weight normalises it"):
        StackedSource("s", LayerPlan((LayerSlot("a", 0, 0.5),), "a", "a"), {"a": a})


@pytest.mark.parametrize(("old", "new"), [("o_proj", "dense"), ("w2", "output")])
def test_a_scale_of_only_half_a_block_is_refused(open_model, old, new):
    tensors = {name.replace(old, new): value for name, value in llama(0, 1).items()}
    up = {"model.layers.0.mlp.experts.2.w3.weight": torch.ones(4, 4)}
    a = open_model("a", tensors | up)
    with pytest.raises(ModelSpaceError, match=r"layer 0 of 'a' .*: the matrix at the end of its"):
        StackedSource("s", LayerPlan((LayerSlot("a", 0, 0.5),), "a", "a"), {"a": a})
