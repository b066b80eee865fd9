import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from evomerge.errors import ConfigError, DataError, EvaluationError, SourceError
from evomerge.evaluation import resident
from evomerge.evaluation.subject import Subject

from . import tiny_models
from .tiny_models import BARE, CAUSAL, IMAGE, SEQUENCE

IDS = torch.tensor([[256, 5, 9, 33, 70], [256, 8, 8, 120, 2]])
PIXELS = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)


def outputs(model):
    with torch.inference_mode():
        if model.config.model_type in ("vit", "dinov2"):
            return model(pixel_values=PIXELS)[0]
        return model(input_ids=IDS)[0]


def two_folders(tmp_path, family):
    class_name, config, settings, auto = tiny_models.FAMILIES[family]
    folders = [
        tiny_models.save(
            tiny_models.make(class_name, config, settings, seed),
            tmp_path / str(seed),
            tokenizer=False,
        )
        for seed in (0, 1)
    ]
    return *folders, auto


def pointers(model):
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_install_equals_from_pretrained_bit_for_bit(tmp_path, family):
    base, other, auto = two_folders(tmp_path, family)
    subject = Subject.load(base, auto_class=auto)
    before = pointers(subject.model)
    torch.manual_seed(0)
    attention = "eager" if family == "gemma2" else "sdpa"  # gemma2 has no sdpa
    wanted = (
        getattr(transformers, auto).from_pretrained(other, attn_implementation=attention).eval()
    )

    subject.install(tiny_models.file_tensors(other).items())

    assert not subject.reloads, subject._loaded.why_unmapped
    assert pointers(subject.model) == before
    for name, tensor in wanted.state_dict().items():
        if name not in subject.uninitialised:
            assert torch.equal(subject.model.state_dict()[name], tensor), name
    if not subject.uninitialised:
        assert torch.equal(outputs(subject.model), outputs(wanted))


@pytest.mark.parametrize("family", ["llama", "llama-tied", "vit", "mixtral", "bert-classifier"])
def test_the_reload_fallback_equals_from_pretrained_too(tmp_path, family, monkeypatch):
    def broken(*_):
        raise AttributeError("transformers moved its tables")

    monkeypatch.setattr(resident, "WeightMap", broken)
    base, other, auto = two_folders(tmp_path, family)
    subject = Subject.load(base, auto_class=auto)
    before = pointers(subject.model)
    assert subject.reloads

    subject.install(tiny_models.file_tensors(other).items())

    wanted = getattr(transformers, auto).from_pretrained(other, attn_implementation="sdpa").eval()
    assert pointers(subject.model) == before
    assert torch.equal(outputs(subject.model), outputs(wanted))


def test_the_fallback_takes_a_head_from_the_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(resident, "WeightMap", lambda *_: 1 / 0)
    base, _, _ = two_folders(tmp_path, "bert")
    subject = Subject.load(base, auto_class=SEQUENCE)
    head = {"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.ones(2)}
    subject.install({**tiny_models.file_tensors(base), **head}.items())
    assert torch.equal(subject.model.classifier.weight, head["classifier.weight"])
    subject.require(SEQUENCE)


def test_the_fallback_refuses_what_from_pretrained_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(resident, "WeightMap", lambda *_: 1 / 0)
    base, other, auto = two_folders(tmp_path, "llama")
    subject = Subject.load(base, auto_class=auto)
    tensors = tiny_models.file_tensors(other)
    tensors["model.norm.weight"] = torch.zeros(7)
    with pytest.raises(EvaluationError, match="ZeroDivisionError"):
        subject.install(tensors.items())


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_file_order_does_not_matter(tmp_path, family):
    base, other, auto = two_folders(tmp_path, family)
    subject = Subject.load(base, auto_class=auto)
    tensors = list(tiny_models.file_tensors(other).items())
    subject.install(tensors)
    forwards = outputs(subject.model)
    subject.install(tiny_models.file_tensors(base).items())
    assert not torch.equal(outputs(subject.model), forwards)
    subject.install(reversed(tensors))
    assert torch.equal(outputs(subject.model), forwards)


def test_absent_members_of_a_fused_tensor_keep_the_files_values(tmp_path):
    base, other, auto = two_folders(tmp_path, "mixtral")
    subject = Subject.load(base, auto_class=auto)
    tensors = tiny_models.file_tensors(other)
    name = next(n for n in tensors if ".experts.2." in n)
    subject.install([(name, tensors[name])])

    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "config.json").write_bytes((base / "config.json").read_bytes())
    save_file(
        tiny_models.file_tensors(base) | {name: tensors[name]},
        mixed / "model.safetensors",
        metadata={"format": "pt"},
    )
    wanted = Subject.load(mixed, auto_class=auto)
    assert torch.equal(outputs(subject.model), outputs(wanted.model))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tensors_are_cast_to_the_resident_dtype(tmp_path, dtype):
    base, other, auto = two_folders(tmp_path, "llama")
    subject = Subject.load(base, auto_class=auto, dtype=dtype)
    subject.install((n, t.double()) for n, t in tiny_models.file_tensors(other).items())
    assert subject.model.dtype == getattr(torch, dtype)
    wanted = transformers.AutoModelForCausalLM.from_pretrained(other, dtype=subject.model.dtype)
    assert torch.equal(outputs(subject.model), outputs(wanted.eval()))


def test_tied_embeddings_are_written_once_and_stay_tied(tmp_path):
    base, other, auto = two_folders(tmp_path, "llama-tied")
    subject = Subject.load(base, auto_class=auto)
    tensors = tiny_models.file_tensors(other)
    embedding = tensors["model.embed_tokens.weight"]
    assert "lm_head.weight" not in tensors
    subject.install([*tensors.items(), ("lm_head.weight", embedding.clone())])
    state = subject.model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    with pytest.raises(EvaluationError, match=r"ties lm_head.weight to .*untied=True"):
        subject.install([*tensors.items(), ("lm_head.weight", embedding + 1)])


def test_untied_subject_takes_a_head_of_its_own(tmp_path):
    base, other, auto = two_folders(tmp_path, "llama-tied")
    tied = Subject.load(base, auto_class=auto)
    subject = Subject.load(base, auto_class=auto, untied=True)
    assert not subject.uninitialised
    assert not subject.reloads, subject._loaded.why_unmapped
    assert torch.equal(outputs(subject.model), outputs(tied.model))
    tensors = tiny_models.file_tensors(other)
    head = torch.randn_like(tensors["model.embed_tokens.weight"])
    subject.install([*tensors.items(), ("lm_head.weight", head)])
    assert torch.equal(subject.model.lm_head.weight, head)
    assert torch.equal(
        subject.model.get_input_embeddings().weight, tensors["model.embed_tokens.weight"]
    )


def test_an_untied_head_is_skipped_by_a_classifier(tmp_path):
    base, other, _ = two_folders(tmp_path, "llama-tied")
    subject = Subject.load(base, auto_class=SEQUENCE, untied=True)
    tensors = tiny_models.file_tensors(other)
    subject.install([*tensors.items(), ("lm_head.weight", tensors["model.embed_tokens.weight"])])


def test_unused_tensors_are_tolerated_only_if_the_files_have_them(tmp_path):
    base, other, _ = two_folders(tmp_path, "bert-classifier")
    subject = Subject.load(
        base, auto_class=BARE
    )  # the classifier is in the files, not in the model
    tensors = tiny_models.file_tensors(other)
    assert "classifier.weight" in tensors
    subject.install(tensors.items())
    with pytest.raises(EvaluationError, match=r"decoder\.weight is neither in the files"):
        subject.install([*tensors.items(), ("decoder.weight", torch.zeros(3))])


def test_a_missing_classifier_is_recorded_and_the_same_everywhere(tmp_path):
    base, _, _ = two_folders(tmp_path, "bert")
    torch.manual_seed(1)
    first = Subject.load(base, auto_class=SEQUENCE)
    torch.manual_seed(2)
    second = Subject.load(base, auto_class=SEQUENCE)
    assert first.uninitialised == ("classifier.bias", "classifier.weight")
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    with pytest.raises(EvaluationError, match=r"classifier\.bias"):
        first.require(SEQUENCE)
    first.install([("classifier.weight", torch.ones(2, 32)), ("classifier.bias", torch.ones(2))])
    first.require(SEQUENCE)


def test_loading_leaves_the_global_random_stream_alone(tmp_path):
    base, _, _ = two_folders(tmp_path, "bert")
    state = torch.random.get_rng_state()
    Subject.load(base, auto_class=SEQUENCE)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(31)}),
            r"model.norm.weight is \(31,\)",
        ),
        (
            lambda t: t.update({"model.nrom.weight": torch.zeros(32)}),
            r"model.nrom.weight is neither",
        ),
        (lambda t: t.pop("model.norm.weight"), r"1 tensors .* first is model.norm.weight"),
    ],
)
def test_a_failed_install_makes_the_subject_dirty(tmp_path, change, message):
    base, other, auto = two_folders(tmp_path, "llama")
    subject = Subject.load(base, auto_class=auto)
    good = tiny_models.file_tensors(other)
    subject.install(good.items())
    bad = dict(good)
    change(bad)
    with pytest.raises(EvaluationError, match=message):
        subject.install(bad.items())
    for score in (
        lambda: subject.logits({"input_ids": IDS}),
        lambda: subject.token_nll([[1, 2]], batch_size=1),
        lambda: subject.generate(["a"], batch_size=1, max_new_tokens=1),
        lambda: subject.option_logprobs(["a"], [["b"]], batch_size=1),
        lambda: subject.require(auto),
    ):
        with pytest.raises(EvaluationError, match="half-written"):
            score()


def test_an_exception_of_the_stream_makes_the_subject_dirty_until_the_next_install(tmp_path):
    base, other, auto = two_folders(tmp_path, "llama")
    subject = Subject.load(base, auto_class=auto)
    tensors = tiny_models.file_tensors(other)

    def stream():
        yield next(iter(tensors.items()))
        raise MemoryError("no more")

    with pytest.raises(MemoryError):
        subject.install(stream())
    with pytest.raises(EvaluationError, match="half-written"):
        subject.require(auto)
    with pytest.raises(EvaluationError, match="missing now"):
        subject.install([("model.norm.weight", tensors["model.norm.weight"])])
    subject.install(tensors.items())
    subject.require(auto)


def test_a_name_twice_is_refused(tmp_path):
    base, other, auto = two_folders(tmp_path, "llama")
    subject = Subject.load(base, auto_class=auto)
    tensors = list(tiny_models.file_tensors(other).items())
    with pytest.raises(EvaluationError, match="came twice"):
        subject.install([*tensors, tensors[0]])


def test_a_head_is_swapped_in_and_restored(tmp_path):
    base, other, _ = two_folders(tmp_path, "bert-classifier")
    subject = Subject.load(base, auto_class=SEQUENCE)
    before, plain = pointers(subject.model), outputs(subject.model)
    head = tmp_path / "head.safetensors"
    weight, bias = torch.randn(5, 32), torch.randn(5)
    save_file({"classifier.weight": weight, "classifier.bias": bias}, head)
    with subject.with_head(head):
        assert outputs(subject.model).shape == (2, 5)
        pooled = subject.model.bert(input_ids=IDS)[1]
        assert torch.equal(outputs(subject.model), pooled @ weight.T + bias) or torch.allclose(
            outputs(subject.model), pooled @ weight.T + bias, atol=1e-6
        )
        with pytest.raises(EvaluationError, match="with_head"):
            subject.install(tiny_models.file_tensors(other).items())
        with pytest.raises(EvaluationError, match="nested"), subject.with_head(head):
            pass
    assert pointers(subject.model) == before
    assert torch.equal(outputs(subject.model), plain)
    with pytest.raises(ZeroDivisionError), subject.with_head(head):
        1 / 0  # noqa: B018
    assert torch.equal(outputs(subject.model), plain)
    subject.install(tiny_models.file_tensors(other).items())
    subject.require(SEQUENCE)


def test_a_head_fills_an_uninitialised_classifier_only_inside_the_block(tmp_path):
    base, _, _ = two_folders(tmp_path, "bert")
    subject = Subject.load(base, auto_class=SEQUENCE)
    head = tmp_path / "head.safetensors"
    save_file({"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.ones(3)}, head)
    with subject.with_head(head):
        subject.require(SEQUENCE)
    with pytest.raises(EvaluationError, match="head:"):
        subject.require(SEQUENCE)
    with subject.with_head(None), pytest.raises(EvaluationError, match="head:"):
        subject.require(SEQUENCE)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"klassifier.weight": torch.ones(3, 32)}, "klassifier.weight is not a parameter"),
        ({"classifier.weight": torch.ones(3, 31)}, r"is \(3, 31\), the model has \(2, 32\)"),
        ({"classifier.weight": torch.ones(3, 32)}, "the file needs both"),
        ({"classifier.bias": torch.ones(3)}, "the file needs both"),
        (None, "cannot be read"),
        (b"garbage", "cannot be read"),
    ],
)
def test_a_bad_head_is_refused_by_name(tmp_path, tensors, message):
    base, _, _ = two_folders(tmp_path, "bert-classifier")
    subject = Subject.load(base, auto_class=SEQUENCE)
    head = tmp_path / "head.safetensors"
    if isinstance(tensors, bytes):
        head.write_bytes(tensors)
    elif tensors is not None:
        save_file(tensors, head)
    with pytest.raises(DataError, match=message), subject.with_head(head):
        pass


def test_bad_folders_and_names_are_refused(tmp_path, llama_folder):
    with pytest.raises(ConfigError, match="AutoModelForCausalLM"):
        Subject.load(llama_folder, auto_class="AutoModelForCausalLN")
    with pytest.raises(ConfigError, match="bfloat16"):
        Subject.load(llama_folder, auto_class=CAUSAL, dtype="bfloat")
    with pytest.raises(SourceError, match=r"no config\.json"):
        Subject.load(tmp_path, auto_class=CAUSAL)
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    with pytest.raises(SourceError, match=r"no model\.safetensors"):
        Subject.load(tmp_path, auto_class=CAUSAL)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(SourceError, match="broken"):
        Subject.load(tmp_path, auto_class=CAUSAL)
    with pytest.raises(SourceError, match="cannot load it"):
        Subject.load(llama_folder, auto_class=IMAGE)


def test_a_folder_without_tokenizer_says_so_when_text_is_needed(tmp_path):
    base, _, auto = two_folders(tmp_path, "llama")
    subject = Subject.load(base, auto_class=auto)
    assert subject.logits({"input_ids": IDS}).dtype == np.float32
    with pytest.raises(SourceError, match="no tokenizer"):
        subject.encode("a")


def test_sharded_checkpoints_are_read(tmp_path):
    model = tiny_models.make("LlamaForCausalLM", "LlamaConfig", tiny_models.DECODER)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    subject = Subject.load(tmp_path, auto_class=CAUSAL)
    assert not subject.reloads, subject._loaded.why_unmapped
    assert torch.equal(outputs(subject.model), outputs(model))
