"""The model computes the function its config names: the published one, whatever else is packed into a row."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from intone.model.gpt import GPT, norm, softcapped

PRESETS = ("modern", "classic")
LENGTHS = (5, 19, 1, 13)  # of the documents in a packed row of 45: two are longer than the short window of 7


def documents_of(lengths, positions):
    """Segment numbers (1, positions) of documents of these lengths; the rest of the row is padding."""
    numbers = torch.full((1, positions), len(lengths), dtype=torch.int32)
    begin = 0
    for number, length in enumerate(lengths):
        numbers[0, begin : begin + length] = number
        begin += length
    return numbers


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# --- against the published model ------------------------------------------------------------------

THEIR_NAMES = {
    "embedding": "model.embed_tokens",
    "blocks": "model.layers",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
    "head": "lm_head",
}


def their_name(name):
    """transformers' name of one of our parameters."""
    for ours, theirs in THEIR_NAMES.items():
        name = name.replace(f"{ours}.", f"{theirs}.")
    return name


@pytest.mark.parametrize("heads_per_key", [1, 3])
def test_classic_gives_the_logits_of_transformers_nanochat(random_model, ids_of, heads_per_key):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference for classic")
    model = random_model("classic", heads_per_key=heads_per_key)
    config = model.config
    theirs = transformers.NanoChatForCausalLM(
        transformers.NanoChatConfig(
            vocab_size=config.padded_vocab,
            hidden_size=config.width,
            intermediate_size=config.mlp_ratio * config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.context,
            rms_norm_eps=config.norm_eps,
            final_logit_softcapping=config.softcap,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        )
    ).eval()
    theirs.load_state_dict({their_name(name): value for name, value in model.state_dict().items()})
    ids = ids_of(3, 37)
    with torch.no_grad():
        expected = theirs(ids.long()).logits[..., : config.vocab_size]
        assert expected.std() > 0.1  # the weights are large enough to tell two functions apart
        assert_close(model.logits(ids), expected, atol=1e-4, rtol=0)


def modern_logits(model, ids):
    """(T,) ids -> (T, V) by the definition, position by position: nanochat's mid-2026 architecture.

    Source: reference of the parts in model/gpt.py and config.py, written out without batches, masks or heads in bulk.
    """
    config, weights = model.config, model.state_dict()
    num_tokens, depth = len(ids), config.depth

    def rms(x):
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()

    def turned(x, position):
        channel = torch.arange(0, config.head_width, 2, dtype=x.dtype) / config.head_width
        angle = position * config.rope_base**-channel
        a, b = x.chunk(2)
        return torch.cat((a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()))

    embedded = rms(weights["embedding.weight"][ids])
    x = embedded.clone()
    for t in range(1, num_tokens):
        gate = weights["smear_scale"] * torch.sigmoid(weights["smear_gate.weight"] @ embedded[t, :24])
        x[t] += gate * embedded[t - 1]
    start = x.clone()
    for i in range(depth):
        of = {name.removeprefix(f"blocks.{i}."): value for name, value in weights.items()}
        x = weights["residual_scale"][i] * x + weights["embedding_scale"][i] * start
        normed = rms(x)
        q, k, v = ((normed @ of[f"attention.{name}.weight"].T).unflatten(-1, (-1, config.head_width)) for name in "qkv")
        if (depth - 1 - i) % 2 == 0:  # every second block, the last one included
            value = weights[f"value_embeddings.{i}.weight"][ids].unflatten(-1, (-1, config.head_width))
            v = v + 3 * torch.sigmoid(normed[:, :12] @ of["attention.value_gate.weight"].T)[..., None] * value
        before = 7 if i < depth - 1 else num_tokens  # tokens in sight besides the token itself
        heard = torch.zeros(num_tokens, config.num_heads, config.head_width, dtype=x.dtype)
        for t in range(num_tokens):
            for head in range(config.num_heads):
                shared = head * config.num_kv_heads // config.num_heads
                query = 1.2 * rms(turned(q[t, head], t))
                seen = range(max(0, t - before), t + 1)
                scores = torch.stack([query @ (1.2 * rms(turned(k[s, shared], s))) for s in seen])
                heard[t, head] = (scores / config.head_width**0.5).softmax(0) @ v[seen.start : seen.stop, shared]
        x = x + heard.flatten(1) @ of["attention.out.weight"].T
        x = x + (rms(x) @ of["mlp.up.weight"].T).clamp(min=0).square() @ of["mlp.down.weight"].T
        if i == depth // 2:
            middle = x
    x = rms(x - weights["backout_scale"] * middle)
    return 15 * torch.tanh(x @ weights["head.weight"][:61].T / 15)


@pytest.mark.parametrize("heads_per_key", [1, 3])
@torch.no_grad()
def test_modern_is_what_its_definition_says(random_model, ids_of, heads_per_key):
    model = random_model(dtype=torch.float64, heads_per_key=heads_per_key)
    ids = ids_of(1, 19)
    assert_close(model.logits(ids)[0], modern_logits(model, ids[0].long()), atol=1e-10, rtol=0)


# --- packed rows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backend", ["sdpa", "products"])
@torch.no_grad()
def test_a_document_in_a_packed_row_gives_the_logits_it_gives_alone(random_model, ids_of, preset, backend):
    model = random_model(preset, dtype=torch.float64)
    model.attention_backend = backend
    ids = ids_of(1, 45)
    packed = model.logits(ids, documents=documents_of(LENGTHS, 45))
    begin = 0
    for length in LENGTHS:
        alone = model.logits(ids[:, begin : begin + length])
        assert_close(packed[:, begin : begin + length], alone, atol=1e-11, rtol=0)
        begin += length


@torch.no_grad()
def test_padding_and_other_documents_change_nothing(random_model, ids_of):
    model = random_model(dtype=torch.float64)
    documents = documents_of(LENGTHS, 45)
    ids, others = ids_of(1, 45), ids_of(1, 45, seed=1)
    others[:, 5:24] = ids[:, 5:24]  # only the second document is the same
    first, second = (model.logits(row, documents=documents)[:, 5:24] for row in (ids, others))
    assert torch.equal(first, second)


def test_smear_restarts_at_the_start_of_a_document(random_model, ids_of):
    model = random_model()
    x = norm(model.embedding(ids_of(1, 45)), model.config.norm_eps)
    changed = (model.smeared(x, documents_of(LENGTHS, 45), None) != x).any(-1)[0]
    assert [i for i in range(45) if not changed[i]] == [0, 5, 24, 25, 38]
    assert not (model.smeared(x, None, None) != x).any(-1)[0, 0]


@torch.no_grad()
def test_a_short_window_is_the_token_and_short_window_before_it(random_model, ids_of):
    model = random_model(smear=False, value_embeddings=False)
    heard = {}
    for number in (0, 2):
        model.blocks[number].attention.register_forward_hook(lambda _m, _i, out, n=number: heard.update({n: out}))
    ids = ids_of(1, 45)
    model.logits(ids)
    before = dict(heard)
    ids[0, 20] = (ids[0, 20] + 1) % 61
    model.logits(ids)
    changed = (heard[0] != before[0]).any(-1)[0].nonzero().flatten().tolist()
    assert changed == list(range(20, 28))
    assert (heard[2] != before[2]).any(-1)[0].nonzero().flatten().tolist() == list(range(20, 45))


@pytest.mark.parametrize("heads_per_key", [1, 3])
def test_both_attention_backends_give_the_same_loss_and_gradients(random_model, ids_of, heads_per_key):
    model = random_model(dtype=torch.float64, heads_per_key=heads_per_key)
    ids, targets, documents = ids_of(1, 45), ids_of(1, 45, seed=1), documents_of(LENGTHS, 45)
    seen = []
    for backend in ("sdpa", "products"):
        model.attention_backend = backend
        loss, _ = model(ids, targets, documents)
        loss.backward()
        seen.append((loss, gradients(model)))
        model.zero_grad()
    assert_close(seen[0], seen[1], atol=1e-10, rtol=1e-10)


# --- loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_the_loss_is_the_sum_over_supervised_tokens(random_model, ids_of, preset):
    model = random_model(preset, dtype=torch.float64)
    ids, targets = ids_of(2, 45), ids_of(2, 45, seed=1)
    targets[:, ::3] = -1
    loss, count = model(ids, targets)
    logs = F.log_softmax(model.logits(ids), -1).gather(-1, targets.clamp(min=0).long()[..., None])[..., 0]
    assert_close(loss, -logs[targets >= 0].sum())
    assert count == 60


@pytest.mark.parametrize("preset", PRESETS)
def test_a_row_with_nothing_to_learn_adds_exactly_nothing(random_model, ids_of, preset):
    model = random_model(preset)
    ids, targets = ids_of(3, 45), ids_of(3, 45, seed=1)
    targets[1] = -1
    documents = documents_of(LENGTHS, 45).repeat(3, 1)
    seen = []
    for _ in range(2):
        loss, count = model(ids, targets, documents)
        loss.backward()
        seen.append((loss.item(), count.item(), gradients(model)))
        model.zero_grad()
        ids[1] = ids_of(1, 45, seed=2)[0]  # whatever stands in it
    assert seen[0][:2] == seen[1][:2] and seen[0][1] == 90
    assert all(torch.equal(seen[0][2][name], seen[1][2][name]) for name in seen[0][2])


def test_a_batch_with_nothing_to_learn_has_loss_zero_and_gradients_zero(random_model, ids_of):
    model = random_model()
    loss, count = model(ids_of(2, 45), torch.full((2, 45), -1))
    loss.backward()
    assert (loss.item(), count.item()) == (0.0, 0)
    assert not any(gradient.any() for gradient in gradients(model).values())


# --- the rest of the contract ---------------------------------------------------------------------


@torch.no_grad()
def test_last_picks_one_position_of_each_row(random_model, ids_of):
    model = random_model(dtype=torch.float64)
    ids, last = ids_of(3, 17), torch.tensor([16, 0, 9])
    assert_close(model.logits(ids, last=last)[:, 0], model.logits(ids)[torch.arange(3), last])


@torch.no_grad()
def test_logits_are_float32_within_the_softcap_and_cover_the_vocabulary_only(random_model, ids_of):
    model = random_model()
    model.head.weight.mul_(1000)
    model.compute_dtype = torch.bfloat16
    logits = model.logits(ids_of(2, 17))
    assert (logits.dtype, logits.shape) == (torch.float32, (2, 17, 61))
    assert 14.0 < logits.abs().max() <= 15.0


@pytest.mark.parametrize("preset", PRESETS)
def test_init_weights_depends_on_the_seed_alone(random_model, preset):
    model = random_model(preset)
    model.init_weights(5)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    other = GPT(model.config)
    torch.set_rng_state(state)
    other.init_weights(5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], value) for name, value in other.state_dict().items())
    other.init_weights(6)
    assert not torch.equal(first["embedding.weight"], other.embedding.weight)


@pytest.mark.parametrize(("preset", "std"), [("modern", 0.4), ("classic", 1.0)])
def test_the_up_projection_starts_at_the_scale_of_its_era(random_model, preset, std):
    model = random_model(preset)
    model.init_weights(0)
    spread = model.blocks[1].mlp.up.weight.std() * 96**0.5  # in units of 1 / sqrt(D); 36,864 numbers: 0.3 % sure
    assert_close(spread, torch.tensor(std), rtol=0.01, atol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_fresh_model_knows_nothing(random_model, ids_of, preset):
    """Its loss is that of guessing: ln 61 = 4.11 nats a token, within what a head of std 0.001 moves."""
    model = random_model(preset)
    model.init_weights(0)
    loss, count = model(ids_of(3, 45), ids_of(3, 45, seed=1))
    assert_close(loss / count, torch.tensor(61.0).log(), atol=0.01, rtol=0)


@torch.no_grad()
def test_the_rotary_tables_grow_and_leave_earlier_positions_alone(random_model, ids_of):
    model = random_model("classic")
    ids = ids_of(1, 61)
    before = model.logits(ids[:, :45])
    model.ensure_positions(61)
    assert model.cos.shape == (61, 16)
    assert_close(model.logits(ids)[:, :45], before, atol=1e-5, rtol=1e-5)
    assert "cos" not in model.state_dict()


@torch.no_grad()
def test_rotary_tables_in_bfloat16_are_another_function(random_model, ids_of):
    ids = ids_of(1, 45)
    exact, rounded = (random_model("classic", rope_bf16=flag) for flag in (False, True))
    assert torch.equal(rounded.cos, rounded.cos.bfloat16().float())
    difference = (exact.logits(ids) - rounded.logits(ids)).abs().max()
    assert 1e-4 < difference < 0.1  # a rounding of 0.4 % in the tables, not another architecture


def test_the_cap_by_an_exponential_is_that_of_tanh_and_its_gradient_is_finite_everywhere():
    x = torch.tensor([-1e6, -700.0, -30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 30.0, 700.0, 1e6], requires_grad=True)
    capped = softcapped(x, 15.0)
    capped.sum().backward()
    exact = x.detach().double().requires_grad_()
    wanted = 15 * torch.tanh(exact / 15)
    wanted.sum().backward()
    assert torch.allclose(capped.double(), wanted, atol=2e-6)
    assert torch.allclose(x.grad.double(), exact.grad, atol=1e-6)
