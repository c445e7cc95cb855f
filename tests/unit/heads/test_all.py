"""Each head against its formula written out."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from two_stream.config.heads import (
    AttentiveHead,
    AverageHead,
    BertHead,
    ConcatHead,
    GruHead,
    HfBertHead,
    LstmHead,
    MomentsHead,
    NonLocalHead,
    TcnHead,
    TransformerHead,
    TrnHead,
)
from two_stream.errors import SettingsError
from two_stream.heads import HEADS
from two_stream.heads.base import TokenMask
from two_stream.heads.bert import UnbiasedNorm
from two_stream.heads.transformer import rotate
from two_stream.heads.trn import combination


def make(options, features=8, tokens=3):
    torch.manual_seed(0)
    return HEADS[options.kind](options, features=features, tokens=tokens).eval()


X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))


def test_average_is_the_mean_over_time():
    torch.testing.assert_close(make(AverageHead())(X), (X[:, 0] + X[:, 1] + X[:, 2]) / 3)


def test_pool_is_the_mean_over_space_in_order_of_time():
    x = torch.arange(2.0 * 3 * 2 * 2).view(1, 2, 3, 2, 2)
    tokens = make(AverageHead()).pool(x)
    assert tokens.tolist() == [[[1.5, 13.5], [5.5, 17.5], [9.5, 21.5]]]


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 10, 16])
def test_moments_are_what_numpy_says(tokens):
    head = make(MomentsHead(maximum=True, parts=3))
    x = torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(2))
    a, end = x.numpy(), max(1, tokens // 4)
    edges = [(i * tokens // 3, max(i * tokens // 3 + 1, (i + 1) * tokens // 3)) for i in range(3)]
    if tokens % 3 == 0:
        assert [len(part) for part in np.array_split(np.arange(tokens), 3)] == [b - a for a, b in edges]
    expected = [a.mean(1), a.std(1), a[:, -end:].mean(1) - a[:, :end].mean(1), a.max(1)]
    expected += [a[:, begin:stop].mean(1) for begin, stop in edges]
    assert head.features == 7 * 8
    np.testing.assert_allclose(head(x).numpy(), np.concatenate(expected, 1), rtol=1e-5, atol=1e-6)


def test_moments_of_few_options_are_fewer():
    assert torch.equal(make(MomentsHead(spread=False, differences=0))(X), make(AverageHead())(X))
    assert make(MomentsHead(differences=0)).features == 16
    with pytest.raises(ValueError, match="`parts` is 1, which is the complete clip"):
        MomentsHead(parts=1)


def test_moments_have_a_gradient_where_nothing_moves():
    x = torch.ones(2, 3, 8, requires_grad=True)
    make(MomentsHead())(x).sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(x.grad.sum(1), torch.ones(2, 8))  # of the mean alone


def test_concat_lays_tokens_out_feature_by_feature():
    head = make(ConcatHead(features=None), tokens=3)
    assert head.features == 24
    z = head(X)
    assert z[0, :3].tolist() == X[0, :, 0].tolist()
    wide = make(ConcatHead(features=5, dropout=0.5))
    assert wide.features == 5
    torch.testing.assert_close(wide(X), wide.join.linear(z))
    assert not torch.equal(wide.train()(X), wide(X))


def test_lstm_returns_the_last_step():
    head = make(LstmHead(hidden=4, layers=2))
    out, _ = head.lstm(X)
    torch.testing.assert_close(head(X), out[:, -1])
    assert head(torch.randn(1, 9, 8)).shape == (1, 4)  # any length


def test_bidirectional_lstm_returns_the_far_end_of_each_direction():
    head = make(LstmHead(hidden=4, layers=1, bidirectional=True))
    _, (hidden, _) = head.lstm(X)
    torch.testing.assert_close(head(X), torch.cat((hidden[0], hidden[1]), dim=1))


def gru_by_hand(x, weights, reverse=False):
    """One layer of a GRU (one clip, numpy); returns the outputs of all steps."""

    def sigmoid(value):
        return 1 / (1 + np.exp(-value))

    w_in, w_state, b_in, b_state = (part.detach().numpy() for part in weights)
    state, out = np.zeros(w_state.shape[1]), []
    for token in x[::-1] if reverse else x:
        reset_in, update_in, new_in = np.split(w_in @ token + b_in, 3)
        reset_state, update_state, new_state = np.split(w_state @ state + b_state, 3)
        update = sigmoid(update_in + update_state)
        new = np.tanh(new_in + sigmoid(reset_in + reset_state) * new_state)
        state = (1 - update) * new + update * state
        out.append(state)
    return np.stack(out)


def test_gru_is_its_formula():
    head = make(GruHead(hidden=4, layers=2))
    assert head.features == 4
    layers = head.gru.all_weights
    wanted = [gru_by_hand(gru_by_hand(x, layers[0]), layers[1])[-1] for x in X.numpy()]
    np.testing.assert_allclose(head(X).detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    both = make(GruHead(hidden=4, layers=1, bidirectional=True))
    forwards, backwards = both.gru.all_weights
    wanted = [
        np.concatenate((gru_by_hand(x, forwards)[-1], gru_by_hand(x, backwards, reverse=True)[-1]))
        for x in X.numpy()
    ]
    np.testing.assert_allclose(both(X).detach().numpy(), wanted, rtol=1e-5, atol=1e-6)


def tcn_by_hand(head, x):
    """The layers of a TCN on one clip (numpy, step by step); returns the outputs of all steps."""

    def linear(conv, value):
        return conv.weight.detach().numpy()[:, :, 0] @ value + conv.bias.detach().numpy()

    steps = [linear(head.embed, token) for token in x]
    for place, layer in enumerate(head.layers):
        weight, bias = (part.detach().numpy() for part in (layer.dilated.weight, layer.dilated.bias))
        before, dilation = steps, 2**place
        steps = []
        for now in range(len(before)):
            total = bias.copy()
            for tap in range(3):
                at = now + (tap - (2 if head.options.causal else 1)) * dilation
                if 0 <= at < len(before):
                    total = total + weight[:, :, tap] @ before[at]
            steps.append(before[now] + linear(layer.mix, np.maximum(total, 0)))
    return np.stack(steps)


@pytest.mark.parametrize("causal", [False, True])
def test_tcn_is_its_formula(causal):
    head = make(TcnHead(hidden=4, layers=3, causal=causal))
    x = torch.randn(2, 11, 8, generator=torch.Generator().manual_seed(2))
    out = [tcn_by_hand(head, clip) for clip in x.numpy()]
    wanted = [clip[-1] if causal else clip.mean(0) for clip in out]
    np.testing.assert_allclose(head(x).detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    x.requires_grad_()
    make(TcnHead(hidden=4, layers=2, causal=True))(x).sum().backward()
    assert x.grad.abs().sum((0, 2)).bool().tolist() == [False] * 4 + [True] * 7  # 2 ** 3 - 1 tokens


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_trn_is_its_formula(tokens):
    head = make(TrnHead(hidden=6), tokens=tokens)
    x = torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(2))
    sizes = range(tokens, 1, -1) if tokens > 1 else [1]
    wanted = np.zeros((2, 6))
    for size, relation in zip(sizes, head.relations, strict=True):
        every = list(combinations(range(tokens), size))
        count = min(3, len(every))
        ((w1, b1), (w2, b2)) = (
            (relation[i].weight.detach().numpy(), relation[i].bias.detach().numpy()) for i in (1, 3)
        )
        for place in range(count):
            frames = every[int((place + 0.5) * len(every) / count)]
            for clip, row in zip(x.numpy(), wanted, strict=True):
                joined = np.maximum(np.concatenate([clip[frame] for frame in frames]), 0)
                row += w2 @ np.maximum(w1 @ joined + b1, 0) + b2
    np.testing.assert_allclose(head(x).detach().numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_trn_counts_subsets_in_lexicographic_order():
    for size in range(1, 8):
        found = [tuple(combination(7, size, rank)) for rank in range(math.comb(7, size))]
        assert found == list(combinations(range(7), size))


def test_trn_draws_ordered_subsets_in_training_and_all_of_them_when_there_are_few():
    head = make(TrnHead(hidden=6), tokens=6).train()
    drawn = {tuple(row) for _ in range(200) for row in head._subsets(3).tolist()}
    assert drawn == set(combinations(range(6), 3))
    assert head._subsets(6).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert head._subsets(3).shape == (3, 3)
    x = torch.randn(2, 6, 8)
    assert not torch.equal(head(x), head(x))
    assert [part[1].in_features for part in make(TrnHead(largest=3), tokens=6).relations] == [24, 16]


@pytest.mark.parametrize("over", ["space_time", "time"])
def test_nonlocal_starts_as_the_identity(over):
    head = make(NonLocalHead(over=over, pool="average"))
    x = torch.randn(2, 8, 3, 2, 2)
    torch.testing.assert_close(head(head.pool(x)), x.mean((2, 3, 4)))


def test_nonlocal_is_its_formula():
    head = make(NonLocalHead(pool="average", inner=5))
    nn.init.normal_(head.block.norm.weight)
    x = torch.randn(2, 8, 3, 2, 2)
    flat = x.flatten(2).transpose(1, 2)
    scores = head.block.theta(flat) @ head.block.phi(flat).transpose(1, 2) / math.sqrt(12)
    looked = head.block.out(scores.softmax(-1) @ head.block.g(flat))
    changed = looked * head.block.norm.weight / math.sqrt(1 + head.block.norm.eps)
    expected = (flat + changed).view(2, 3, 4, 8).mean(2)
    torch.testing.assert_close(head.pool(x), expected, rtol=1e-4, atol=1e-5)


def test_unbiased_norm_divides_by_sample_deviation_plus_eps():
    norm = UnbiasedNorm(4, eps=0.5)
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    expected = (x - 3.0) / (math.sqrt(14.0 / 3.0) + 0.5)
    torch.testing.assert_close(norm(x), expected)


def bert_by_hand(head, x):
    """One pre-norm block over class token and tokens, written with plain operations."""
    block = head.blocks[0]
    heads = head.options.heads
    x = torch.cat((head.class_token.expand(len(x), 1, -1), x), 1) + head.positions

    def norm(part, value):
        return (
            part.weight * (value - value.mean(-1, keepdim=True)) / (value.std(-1, keepdim=True) + 1e-6)
            + part.bias
        )

    inner = norm(block.norm1, x)
    size = x.shape[-1] // heads
    mixed, attention = [], []
    for index in range(heads):
        part = slice(index * size, (index + 1) * size)
        query, key, value = (
            getattr(block.attention, name)(inner)[..., part] for name in ("query", "key", "value")
        )
        weights = (query @ key.transpose(1, 2) / math.sqrt(size)).softmax(-1)
        attention.append(weights[:, 0, 1:])
        mixed.append(weights @ value)
    x = x + block.attention.output(torch.cat(mixed, -1))
    hidden = block.feed_forward[0](norm(block.norm2, x))
    hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    return (x + block.feed_forward[3](hidden))[:, 0], torch.stack(attention, 1)


def test_bert_is_its_formula():
    head = make(BertHead(heads=2))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    z, attention = bert_by_hand(head, X)
    torch.testing.assert_close(head(X), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.attention(X), attention, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_token", [True, False])
def test_bert_interpolates_positions_where_asked(class_token):
    head = make(BertHead(heads=2, interpolate=True, class_token=class_token), tokens=4)
    plain = make(BertHead(heads=2, class_token=class_token), tokens=4)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    plain.load_state_dict(head.state_dict())
    known = head.positions[0].detach().numpy()
    time = known[int(class_token) :]
    for tokens in (4, 6, 3, 1):
        x = torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(2))
        places = (np.arange(tokens) + 0.5) * 4 / tokens - 0.5
        moved = [np.interp(places, np.arange(4), time[:, channel]) for channel in range(8)]
        wanted = np.concatenate((known[: int(class_token)], np.stack(moved, 1)))
        other = make(BertHead(heads=2, class_token=class_token), tokens=tokens)
        other.load_state_dict(head.state_dict() | {"positions": torch.tensor(wanted)[None]})
        torch.testing.assert_close(head(x), other(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(head.attention(x), other.attention(x), rtol=1e-4, atol=1e-5)
        if tokens == 4:
            assert torch.equal(head(x), plain(x))
        else:
            with pytest.raises(
                SettingsError, match=r"different `input.clip_length`, or set `head.interpolate: true`$"
            ):
                plain(x)


def transformer_by_hand(head, x):
    """Pre-norm blocks with the rotary functions of Llama and plain operations; returns vectors and attention."""
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    heads, width = head.options.heads, head.features
    size = width // heads
    config = LlamaConfig(hidden_size=width, num_attention_heads=heads, head_dim=size)

    def norm(part, value):
        deviation = (value.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return part.weight * (value - value.mean(-1, keepdim=True)) / deviation + part.bias

    if head.options.class_token:
        x = torch.cat((head.class_token.expand(len(x), 1, -1), x), 1)
    cos, sin = LlamaRotaryEmbedding(config)(x, torch.arange(x.shape[1])[None])
    for block in head.blocks:
        inner = norm(block.norm1, x)
        query, key, value = (
            torch.stack(getattr(block.attention, name)(inner).split(size, -1), 1)
            for name in ("query", "key", "value")
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        weights = (query @ key.transpose(2, 3) / math.sqrt(size)).softmax(-1)
        x = x + block.attention.output(torch.cat((weights @ value).unbind(1), -1))
        hidden = block.feed_forward[0](norm(block.norm2, x))
        x = x + block.feed_forward[3](hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    x = norm(head.norm, x)
    return (x[:, 0], weights[:, :, 0, 1:]) if head.options.class_token else (x.mean(1), weights.mean(2))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("tokens", [3, 7])
def test_transformer_is_its_formula(class_token, tokens):
    head = make(TransformerHead(heads=2, layers=2, class_token=class_token))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(2))
    z, attention = transformer_by_hand(head, x)
    torch.testing.assert_close(head(x), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.attention(x), attention, rtol=1e-4, atol=1e-5)


def test_an_odd_width_leaves_one_channel_where_it_is():
    x = torch.randn(1, 1, 4, 5)
    turned = rotate(x)
    torch.testing.assert_close(turned[..., :4], rotate(x[..., :4]))
    assert torch.equal(turned[..., 4], x[..., 4])
    assert torch.equal(rotate(x[..., :1]), x[..., :1])
    half = rotate(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), turned, atol=0.05, rtol=0.05)


PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}


def weights_of_the_library(head):
    """The weights under the names of `VJEPA2AttentivePooler`."""
    found = {"query_tokens": head.queries}
    blocks = {f"self_attention_layers.{i}": (block, "self_attn") for i, block in enumerate(head.blocks)}
    for prefix, (block, attention) in {"cross_attention_layer": (head.cross, "cross_attn"), **blocks}.items():
        parts = {f"{attention}.{theirs}": getattr(block.attention, ours) for ours, theirs in PARTS.items()}
        parts |= {"layer_norm1": block.norm1, "layer_norm2": block.norm2}
        parts |= {"mlp.fc1": block.feed_forward[0], "mlp.fc2": block.feed_forward[3]}
        for name, part in parts.items():
            found |= {f"{prefix}.{name}.{key}": value for key, value in part.state_dict().items()}
    return found


@pytest.mark.parametrize("blocks", [0, 3])
def test_attentive_is_the_librarys_pooler(blocks):
    from transformers.models.vjepa2.configuration_vjepa2 import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    head = make(AttentiveHead(heads=2, blocks=blocks))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    config = VJEPA2Config(
        hidden_size=8, num_attention_heads=2, num_pooler_layers=blocks, attn_implementation="eager"
    )
    reference = VJEPA2AttentivePooler(config).eval()
    reference.load_state_dict(weights_of_the_library(head))
    seen = []
    reference.cross_attention_layer.cross_attn.register_forward_hook(
        lambda module, args, out: seen.append(out[1])
    )
    for x in (X, torch.randn(2, 7, 8)):
        torch.testing.assert_close(head(x), reference(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(head.attention(x), seen[-1][:, :, 0], rtol=1e-4, atol=1e-5)
    assert head.features == 8


def test_several_queries_are_laid_out_one_after_another():
    head = make(AttentiveHead(heads=2, queries=3, hidden=4))
    assert head.features == 12
    nn.init.normal_(head.queries)
    each = []
    for place in range(3):
        one = make(AttentiveHead(heads=2, hidden=4))
        one.load_state_dict(head.state_dict() | {"queries": head.queries[:, place : place + 1]})
        each.append(one)
    torch.testing.assert_close(head(X), torch.cat([one(X) for one in each], 1))
    torch.testing.assert_close(head.attention(X), torch.stack([one.attention(X) for one in each]).mean(0))
    torch.testing.assert_close(head.attention(X).sum(-1), torch.ones(2, 2))


def test_attentive_alone_forgets_the_order_of_time():
    head = make(AttentiveHead(heads=2, blocks=1))
    torch.testing.assert_close(head(X), head(X.flip(1)))


def test_heads_see_the_order_of_time():
    orders = (
        BertHead(heads=2),
        HfBertHead(heads=2),
        TransformerHead(heads=2),
        TrnHead(),
        TcnHead(),
        GruHead(),
    )
    for options in orders:
        head = make(options)
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.5)
        assert (head(X) - head(X.flip(1))).abs().max() > 1e-3


def test_normalised_tokens_forget_their_length():
    head = make(BertHead(heads=2, normalize=True))
    torch.testing.assert_close(head(X), head(X * 7))
    assert not torch.allclose(make(BertHead(heads=2))(X), make(BertHead(heads=2))(X * 7))


def test_without_class_token_the_outputs_are_averaged():
    head = make(BertHead(heads=2, class_token=False))
    assert head.positions.shape == (1, 3, 8)
    seen = []
    head.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    torch.testing.assert_close(head(X), seen[0].mean(1))
    torch.testing.assert_close(head.attention(X).sum(-1), torch.ones(2, 2))
    block = head.blocks[0]
    inner = block.norm1(X + head.positions)
    query, key = (getattr(block.attention, name)(inner)[..., 4:] for name in ("query", "key"))
    second = (query @ key.transpose(1, 2) / 2).softmax(-1).mean(1)
    torch.testing.assert_close(head.attention(X)[:, 1], second)


def test_heads_say_whether_they_have_attention_and_a_class_token():
    heads = [make(part()) for part in (BertHead, HfBertHead, TransformerHead, AttentiveHead)]
    heads += [make(BertHead(class_token=False)), make(TransformerHead(class_token=False))]
    assert [head.has_class_token for head in heads] == [True, True, True, False, False, False]
    for head in heads:
        head.check_attention()
    with pytest.raises(
        SettingsError, match=r"^head lstm has no attention; use (\w+ or )*bert or (\w+ or )*hf_bert"
    ):
        make(LstmHead()).check_attention()


def test_the_list_of_heads_with_attention_is_the_registrys(monkeypatch):
    class Last(HEADS["average"]):
        def attention(self, x_BTD):
            return x_BTD

    monkeypatch.setitem(HEADS._builders, "zz", Last)
    with pytest.raises(SettingsError, match=r"; use .*bert or .*hf_bert or (\w+ or )*zz$"):
        make(LstmHead()).check_attention()


def test_another_hidden_width_goes_through_a_linear_layer():
    head = make(BertHead(heads=2, hidden=12))
    assert head.features == 12
    assert head(X).shape == (2, 12)


def test_mask_keeps_the_share_asked_for_and_always_the_class_token():
    torch.manual_seed(0)
    mask = TokenMask(0.8, class_token=True)
    kept = mask(4000, 6, torch.device("cpu"))
    assert kept[:, 0].all()
    assert 0.78 < kept[:, 1:].float().mean() < 0.82
    assert mask.eval()(4, 6, torch.device("cpu")) is None


def test_mask_without_class_token_keeps_at_least_one():
    torch.manual_seed(0)
    kept = TokenMask(0.05, class_token=False)(1000, 3, torch.device("cpu"))
    assert kept.any(1).all()


@pytest.mark.parametrize(
    "options", [BertHead(heads=2, dropout=0.0), HfBertHead(heads=2, dropout=0.0, keep=0.5)]
)
def test_a_masked_token_has_no_influence_on_the_class_token(options, monkeypatch):
    head = make(options).train()
    kept = torch.tensor([[True, True, False, True]]).expand(2, -1)
    monkeypatch.setattr(head.mask, "forward", lambda batch, tokens, device: kept)
    x = X.clone().requires_grad_()
    head(x).square().sum().backward()
    assert x.grad[:, 1].abs().max() == 0
    assert x.grad[:, 0].abs().max() > 0


def test_hf_bert_is_the_librarys_encoder():
    from transformers import BertConfig, BertModel

    head = make(HfBertHead(heads=2, layers=2))
    config = BertConfig(
        vocab_size=1,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=4,
        type_vocab_size=1,
    )
    reference = BertModel(config, add_pooling_layer=False).eval()
    reference.load_state_dict(head.encoder.state_dict(), strict=False)
    tokens = torch.cat((head.class_token.expand(2, 1, 8), X), 1)
    expected = reference(inputs_embeds=tokens).last_hidden_state[:, 0]
    torch.testing.assert_close(head(X), expected)
    attention = head.attention(X)
    assert attention.shape == (2, 2, 3)
    assert ((attention > 0) & (attention < 1)).all()
    torch.testing.assert_close(head(X), expected)  # reading the attention left no trace


@pytest.mark.parametrize(
    "options", [ConcatHead(), NonLocalHead(over="time"), BertHead(heads=2), HfBertHead(heads=2), TrnHead()]
)
def test_another_number_of_tokens_is_refused_in_one_line(options):
    with pytest.raises(SettingsError, match=r"^head \w+ is built for 3 time steps but got 4; .*$"):
        make(options)(torch.randn(1, 4, 8))


@pytest.mark.parametrize(
    "options", [BertHead(heads=3), HfBertHead(heads=3), TransformerHead(heads=3), AttentiveHead(heads=3)]
)
def test_width_must_divide_into_heads(options):
    with pytest.raises(SettingsError, match="is not divisible by 3 heads"):
        make(options)
