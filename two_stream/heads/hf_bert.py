"""BERT's encoder from the transformers library, over a class token and the tokens of a clip."""

from __future__ import annotations

import torch
from torch import nn

from two_stream.config.heads import HfBertHead
from two_stream.errors import SettingsError
from two_stream.heads.base import HEADS, Head, TokenMask


@HEADS.register(HfBertHead)
class HfBert(Head):
    """Post-norm BERT encoder with random weights, built from a configuration; nothing is downloaded."""

    fixed_length = True
    has_class_token = True

    def __init__(self, options: HfBertHead, *, features: int, tokens: int) -> None:
        super().__init__(options, features=features, tokens=tokens)
        if features % options.heads:
            raise SettingsError(
                f"head hf_bert: width {features} is not divisible by {options.heads} heads; "
                "change `head.heads`, or set `model.reduction`"
            )
        from transformers import BertConfig, BertModel  # slow import

        config = BertConfig(
            vocab_size=1,
            hidden_size=features,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=features * options.feed_forward,
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.dropout,
            max_position_embeddings=tokens + 1,
            type_vocab_size=1,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        del self.encoder.embeddings.word_embeddings  # unused: tokens are vectors
        self.class_token = nn.Parameter(torch.empty(1, 1, features))
        nn.init.normal_(self.class_token, std=0.02)
        self.mask = TokenMask(options.keep, class_token=True)

    def _sequence(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.check_tokens(x_BTD)
        return torch.cat((self.class_token.expand(x_BTD.shape[0], -1, -1).to(x_BTD.dtype), x_BTD), dim=1)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return the class token's output, `(B, D)`."""
        x_BTD = self._sequence(x_BTD)
        kept_BT = self.mask(x_BTD.shape[0], x_BTD.shape[1], x_BTD.device)
        z_BD: torch.Tensor = self.encoder(inputs_embeds=x_BTD, attention_mask=kept_BT).last_hidden_state[:, 0]
        return z_BD

    @torch.no_grad()
    def attention(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return how much the last layer's class token attends to each time token, `(B, heads, T)`.

        The class token's attention to itself is omitted, so a row sums to less than one.
        """
        self.encoder.set_attn_implementation("eager")  # the fused kernel does not return attention weights
        try:
            out = self.encoder(inputs_embeds=self._sequence(x_BTD), output_attentions=True)
        finally:
            self.encoder.set_attn_implementation("sdpa")
        weights_BHT: torch.Tensor = out.attentions[-1][:, :, 0, 1:]
        return weights_BHT
