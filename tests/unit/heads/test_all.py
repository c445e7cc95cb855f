"""Each head against its formula written out."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from two_stream.config.heads import (
    AverageHead,
    BertHead,
    ConcatHead,
    HfBertHead,
    LstmHead,
    MomentsHead,
    NonLocalHead,
)
from two_stream.errors import SettingsError
from two_stream.heads import HEADS
from two_stream.heads.base import TokenMask
from two_stream.heads.bert import UnbiasedNorm


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


def test_bert_sees_the_order_of_time():
    for options in (BertHead(heads=2), HfBertHead(heads=2)):
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
    heads = [make(part()) for part in (BertHead, HfBertHead)] + [make(BertHead(class_token=False))]
    assert [head.has_class_token for head in heads] == [True, True, False]
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
    "options", [ConcatHead(), NonLocalHead(over="time"), BertHead(heads=2), HfBertHead(heads=2)]
)
def test_another_number_of_tokens_is_refused_in_one_line(options):
    with pytest.raises(SettingsError, match=r"^head \w+ is built for 3 time steps but got 4; .*$"):
        make(options)(torch.randn(1, 4, 8))


@pytest.mark.parametrize("options", [BertHead(heads=3), HfBertHead(heads=3)])
def test_width_must_divide_into_heads(options):
    with pytest.raises(SettingsError, match="is not divisible by 3 heads"):
        make(options)
