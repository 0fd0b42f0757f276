# pyright: reportIncompatibleVariableOverride=false, reportIncompatibleMethodOverride=false
# pyright: reportAssignmentType=false, reportPrivateImportUsage=false
# ruff: noqa: E402 (the version is asked for before anything that older ones lack)
"""NaViT-CLIP's towers for transformers 5.6 or newer, in one file that needs torch and transformers alone.

It is copied into every exported folder and run from there (`trust_remote_code`), so it imports nothing else.
Weights have the names that the training package gives them. Two forms of input:

    padded   pixel_values [images, patches, patch_dim], pixel_attention_mask and spatial_shapes, as
             Siglip2ImageProcessor makes them; input_ids and attention_mask as tokenizers do
    packed   the same with images (or captions) one after the other in a single row, and cu_seqlens: where
             each starts, then the total. Nothing is padded but, without flash attention, inside attention
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.versions import require_version

require_version("transformers>=5.6", "This model's code needs it: pip install -U transformers")

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs


class NavitSiglipVisionConfig(PreTrainedConfig):
    """The image tower; see the training package's ImageTowerConfig for what its settings mean."""

    model_type = "navit_siglip_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-6
    qk_norm: bool = False
    biases: bool = False
    patch_size: int = 16
    position_kind: str = "learned"
    position_coordinates: str = "fractional"
    position_combination: str = "sum"
    position_table_side: int = 16


class NavitSiglipTextConfig(PreTrainedConfig):
    """The text tower; see the training package's TextTowerConfig."""

    model_type = "navit_siglip_text_model"
    base_config_key = "text_config"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-6
    qk_norm: bool = False
    biases: bool = False
    vocab_size: int = 32000
    max_position_embeddings: int = 64
    projection_size: int = 768
    causal: bool = False
    pooling: str = "last"
    alignment: str = "right"
    attended_padding: bool = False
    """Captions are padded on the right to the full length, and the padding is attended to."""
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None


class NavitSiglipConfig(PreTrainedConfig):
    """Both towers."""

    model_type = "navit_siglip"
    sub_configs: ClassVar = {"vision_config": NavitSiglipVisionConfig, "text_config": NavitSiglipTextConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs):
        for name, sub_config in self.sub_configs.items():
            given = getattr(self, name)
            if not isinstance(given, PreTrainedConfig):
                setattr(self, name, sub_config(**(given or {})))
        super().__post_init__(**kwargs)


@dataclass
class NavitSiglipOutput(ModelOutput):
    """What both towers make of images and captions; embeddings are unit vectors."""

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None


class Layout:
    """Which tokens of a batch are real, and which of them belong together.

    Args:
        tokens: [rows, length, ...].
        mask: [rows, length], of a padded batch; without one, all tokens are real.
        cu_seqlens: of a packed batch of one row.
    """

    def __init__(self, tokens: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None):
        rows, length = tokens.shape[:2]
        index = torch.arange(length, device=tokens.device)
        self.cu_seqlens = cu_seqlens
        if cu_seqlens is None:
            self.mask = mask
            self.lengths = torch.full((rows,), length, device=tokens.device) if mask is None else mask.sum(-1)
            self.place = index.expand(rows, -1) if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
            return
        if rows != 1 or int(cu_seqlens[-1]) != length:
            raise ValueError(
                f"cu_seqlens: expected one row of {int(cu_seqlens[-1])} tokens, found {rows} of {length}"
            )
        self.lengths = cu_seqlens.diff()
        self.longest = int(self.lengths.max())
        self.sequence = torch.repeat_interleave(self.lengths.long(), output_size=length)
        self.place = (index - cu_seqlens[self.sequence])[None]
        self.mask = torch.arange(self.longest, device=tokens.device) < self.lengths[:, None]

    def to(self, device: Any, non_blocking: bool = False) -> Layout:
        """The same on another device. Having this, it is moved with a block's other inputs (device_map)."""
        moved = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device, non_blocking=non_blocking))
        return moved

    def per_token(self, values: Tensor) -> Tensor:
        """Values of sequences [sequences, ...] -> of their tokens [rows, length, ...]."""
        return values[:, None] if self.cu_seqlens is None else values[self.sequence][None]

    def spread(self, tokens: Tensor) -> Tensor:
        """Tokens in rows of their own sequence, padded to the longest; a padded batch as it is."""
        if self.cu_seqlens is None:
            return tokens
        rows = tokens.new_zeros(len(self.lengths), self.longest, *tokens.shape[2:])
        return rows.index_put((self.sequence, self.place[0]), tokens[0])

    def gather(self, rows: Tensor) -> Tensor:
        """What `spread` took apart, in one row again."""
        return rows if self.cu_seqlens is None else rows[self.sequence, self.place[0]][None]

    def last(self, tokens: Tensor) -> Tensor:
        """The last real token of every sequence."""
        if self.cu_seqlens is not None:
            return tokens[0, self.cu_seqlens[1:].long() - 1]
        if self.mask is None:
            return tokens[:, -1]
        index = torch.arange(tokens.shape[1], device=tokens.device)
        last = (self.mask.long() * index).argmax(-1)
        return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[2]))[:, 0]


def eager_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """softmax(q k^T) v, which keeps its weights."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class Attention(nn.Module):
    def __init__(self, config, causal: bool):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.is_causal = causal
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.biases)
        self.query_norm = layer_norm(self.head_dim, config) if config.qk_norm else nn.Identity()
        self.key_norm = layer_norm(self.head_dim, config) if config.qk_norm else nn.Identity()
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=config.biases)

    def forward(self, tokens, attention_mask, layout, turns=None):
        heads = self.query_key_value(tokens).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = heads.unbind(dim=2)
        query, key = self.query_norm(query), self.key_norm(key)
        if turns is not None:
            query, key = rotate(query, turns).to(value.dtype), rotate(key, turns).to(value.dtype)
        implementation = self.config._attn_implementation
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        settings: dict[str, Any] = {
            "is_causal": self.is_causal,
            "scaling": self.head_dim**-0.5,
            "dropout": 0.0,
        }
        offsets, packed_kernel = layout.cu_seqlens, False
        if offsets is not None and "flash" in implementation:
            packed_kernel, offsets = True, offsets.to(torch.int32)
            settings |= {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets}
            settings |= {"max_length_q": layout.longest, "max_length_k": layout.longest}
        else:
            query, key, value = (layout.spread(part) for part in (query, key, value))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attended, weights = interface(self, query, key, value, attention_mask, **settings)
        attended = attended.flatten(2)
        return self.output(attended if packed_kernel else layout.gather(attended)), weights


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.biases)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.biases)

    def forward(self, tokens):
        return self.contract(F.gelu(self.expand(tokens), approximate="tanh"))


class Block(GradientCheckpointingLayer):
    def __init__(self, config, causal: bool):
        super().__init__()
        self.attention_norm = layer_norm(config.hidden_size, config)
        self.attention = Attention(config, causal)
        self.mlp_norm = layer_norm(config.hidden_size, config)
        self.mlp = MLP(config)

    def forward(self, tokens, attention_mask, layout, turns=None):
        tokens = tokens + self.attention(self.attention_norm(tokens), attention_mask, layout, turns)[0]
        return tokens + self.mlp(self.mlp_norm(tokens))


class Transformer(nn.Module):
    def __init__(self, config, causal: bool = False):
        super().__init__()
        self.config = config
        self.causal = causal
        self.blocks = nn.ModuleList(Block(config, causal) for _ in range(config.num_hidden_layers))
        self.norm = layer_norm(config.hidden_size, config)

    def forward(self, tokens, layout, turns=None):
        attention_mask = self._mask(tokens, layout.to(tokens.device))
        for block in self.blocks:
            tokens = block(tokens, attention_mask, layout, turns)
        return self.norm(tokens)

    def _mask(self, tokens, layout):
        """The mask in the form that the attention implementation wants."""
        if layout.cu_seqlens is not None:
            if "flash" in self.config._attn_implementation:
                return None
            tokens = tokens.new_empty(*layout.mask.shape, 1)
        if self.causal:
            return create_causal_mask(self.config, tokens, layout.mask, None)
        return create_bidirectional_mask(self.config, tokens, layout.mask)


class AttentionPooling(nn.Module):
    """A learned probe attends to each sequence's tokens."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.probe = nn.Parameter(torch.empty(1, width))
        self.query_key_value_weight = nn.Parameter(torch.empty(3 * width, width))
        self.query_key_value_bias = nn.Parameter(torch.empty(3 * width)) if config.biases else None
        self.output = nn.Linear(width, width, bias=config.biases)
        self.norm = layer_norm(width, config)
        self.mlp = MLP(config)

    def forward(self, tokens, layout):
        tokens = layout.spread(tokens)
        query_weight, key_weight, value_weight = self.query_key_value_weight.chunk(3)
        query_bias, _, value_bias = (None,) * 3
        if self.query_key_value_bias is not None:
            query_bias, _, value_bias = self.query_key_value_bias.chunk(3)
        query = F.linear(self.probe, query_weight, query_bias).view(self.num_heads, 1, -1)
        keys = key_weight.view(self.num_heads, -1, tokens.shape[-1])
        scores = (tokens @ (query @ keys).squeeze(1).T).float() * query.shape[-1] ** -0.5
        if layout.mask is not None:
            scores = scores.masked_fill(~layout.mask[..., None].bool(), -torch.inf)
        weights = scores.softmax(dim=1).to(tokens.dtype)
        values = F.linear(tokens, value_weight, value_bias).unflatten(-1, (self.num_heads, -1))
        pooled = self.output((values * weights[..., None]).sum(dim=1).flatten(1))
        return pooled + self.mlp(self.norm(pooled))


class Positions(nn.Module):
    """Every kind of position of patches: vectors to add to them, or what rotary attention turns by."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        side, width, kind = config.position_table_side, config.hidden_size, config.position_kind
        if kind == "learned":
            dim = width // 2 if config.position_combination == "stack" else width
            self.row = nn.Parameter(torch.empty(side, dim))
            self.column = nn.Parameter(torch.empty(side, dim))
        elif kind in ("grid", "learned_2d"):
            self.table = nn.Parameter(torch.empty(side**2, width))
        elif kind == "fourier":
            self.frequencies = nn.Parameter(torch.empty(2, width // 2))

    def forward(self, position: Tensor, grid: Tensor) -> Tensor:
        """Args: row and column of each patch, and rows and columns of its image, both [rows, length, 2]."""
        config, side = self.config, self.config.position_table_side
        if config.position_kind == "learned_2d" or (
            config.position_kind == "learned" and config.position_coordinates == "absolute"
        ):
            check_longest(grid, side, "rows and columns of an image's grid")
        if config.position_coordinates == "fractional_longer":
            grid = grid.amax(dim=-1, keepdim=True).expand_as(grid)
        if config.position_kind == "learned_2d":
            index = position[..., 0] * side + position[..., 1]
            # In a graph, which says nothing by itself, what runs it refuses an index beyond the table.
            return F.embedding(index.where((position < side).all(-1), side**2), self.table)
        if config.position_kind == "grid":
            row, column = resize_weights(position, grid, side).unbind(dim=-2)
            return (row[..., :, None] * column[..., None, :]).flatten(-2).to(self.table.dtype) @ self.table
        if config.position_kind == "learned":
            return self._factorized(position, grid)
        place = position.float()
        if config.position_coordinates != "absolute":
            place = (place + 0.5) * side / grid - 0.5
        if config.position_kind == "fourier":
            angles = place @ self.frequencies.float()
            return torch.cat([angles.sin(), angles.cos()], dim=-1)
        if config.position_kind == "sinusoidal":
            angles = place[..., None] * geometric(config.hidden_size // 4, 10_000.0, place)
            return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        head_dim = config.hidden_size // config.num_attention_heads
        angles = (place[..., None] * geometric(head_dim // 4, 100.0, place)).flatten(-2)
        return torch.stack([angles.cos(), angles.sin()], dim=-2)

    def _factorized(self, position: Tensor, grid: Tensor) -> Tensor:
        if self.config.position_coordinates == "absolute":
            row, column = (
                F.embedding(index, table)
                for index, table in zip(position.unbind(-1), (self.row, self.column), strict=True)
            )
        else:
            weights = resize_weights(position, grid, self.config.position_table_side).to(self.row.dtype)
            row, column = weights[..., 0, :] @ self.row, weights[..., 1, :] @ self.column
        if self.config.position_combination == "stack":
            return torch.cat([row, column], dim=-1)
        return row * column if self.config.position_combination == "product" else row + column


def check_longest(found: int | Tensor, most: int, what: str) -> None:
    """What is longer than its table would take a place that is another's, or lose its end."""
    if is_graph():
        return
    longest = found if isinstance(found, int) else int(found.max())
    if longest > most:
        raise ValueError(f"{what}: expected at most {most}, found {longest}")


def check_grids(spatial_shapes: Tensor, lengths: Tensor) -> None:
    """Images have as many patches as their grids have places."""
    if is_graph():
        return
    if spatial_shapes.shape != (len(lengths), 2):
        raise ValueError(
            f"spatial_shapes: expected rows and columns of {len(lengths)} images, [{len(lengths)}, 2], found "
            f"{list(spatial_shapes.shape)}"
        )
    wrong = (spatial_shapes.prod(-1) != lengths).nonzero()
    if len(wrong):
        image = int(wrong[0])
        grid = " x ".join(map(str, spatial_shapes[image].tolist()))
        raise ValueError(
            f"spatial_shapes: expected a grid of image {image}'s {int(lengths[image])} patches, found {grid}"
        )


def is_graph() -> bool:
    """Whether what runs is being recorded; a graph has no errors of its own."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def resize_weights(index: Tensor, size: Tensor, table_side: int) -> Tensor:
    """Rows of the matrix that resizes a table to `size`: bilinear with antialiasing."""
    size = size[..., None]
    entry = torch.arange(table_side, device=index.device)
    distance = ((2 * index[..., None] + 1) * table_side - (2 * entry + 1) * size).abs()
    weights = (2 * size.clamp(min=table_side) - distance).clamp(min=0).float()
    return weights / weights.sum(-1, keepdim=True)


def geometric(number: int, longest: float, like: Tensor) -> Tensor:
    return longest ** (-torch.arange(number, device=like.device) / number)


def rotate(vectors: Tensor, turns: Tensor) -> Tensor:
    """Turns value i of every head with value i + head_dim / 2."""
    first, second = vectors.chunk(2, dim=-1)
    cosine, sine = turns[:, :, 0, None], turns[:, :, 1, None]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def layer_norm(width: int, config) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=config.layer_norm_eps, bias=config.biases)


class NavitSiglipPreTrainedModel(PreTrainedModel):
    config_class = NavitSiglipConfig
    base_model_prefix = "navit_siglip"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["Block", "Positions", "AttentionPooling"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar = {"hidden_states": Block, "attentions": Attention}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, AttentionPooling | Positions):
            for parameter in module.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)
        elif isinstance(module, NavitSiglipModel):
            nn.init.constant_(module.logit_scale, 2.3)
            nn.init.constant_(module.logit_bias, -10.0)


class NavitSiglipVisionModel(NavitSiglipPreTrainedModel):
    """Patches of images of any size and shape -> a vector for each patch and one for each image."""

    config_class = NavitSiglipVisionConfig
    base_model_prefix = "image"  # so that a pair's folder opens, too
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _input_embed_layer = "patch_embedding"
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^text\.", r"^logit_"]

    def __init__(self, config: NavitSiglipVisionConfig):
        super().__init__(config)
        self.patch_embedding = nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.position = Positions(config)
        self.transformer = Transformer(config)
        self.pooling = AttentionPooling(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        spatial_shapes: Tensor,
        pixel_attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        layout = Layout(pixel_values, pixel_attention_mask, cu_seqlens)
        check_grids(spatial_shapes, layout.lengths)
        tokens = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        grid = layout.per_token(spatial_shapes).expand(*tokens.shape[:2], 2)
        columns = grid[..., 1]
        place = torch.minimum(layout.place, grid.prod(-1) - 1)
        row = torch.div(place, columns, rounding_mode="floor")
        position = self.position(torch.stack([row, place - row * columns], dim=-1), grid)
        turns = position if self.config.position_kind == "rope" else None
        if turns is None:
            tokens = tokens + position.to(tokens)
        tokens = self.transformer(tokens, layout, turns)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=self.pooling(tokens, layout)
        )


class NavitSiglipTextModel(NavitSiglipPreTrainedModel):
    """Token ids -> a vector for each token and one for each caption."""

    config_class = NavitSiglipTextConfig
    base_model_prefix = "text"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    _input_embed_layer = "token_embedding"
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"^image\.", r"^logit_"]

    def __init__(self, config: NavitSiglipTextConfig):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.transformer = Transformer(config, config.causal)
        self.pooling = AttentionPooling(config) if config.pooling == "map" else None
        self.head = nn.Linear(config.hidden_size, config.projection_size)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        length = self.config.max_position_embeddings
        if self.config.attended_padding and cu_seqlens is None:
            if attention_mask is not None:
                input_ids = input_ids.where(attention_mask.bool(), self.config.pad_token_id)
            check_longest(input_ids.shape[1], length, "tokens of a caption")
            input_ids = F.pad(input_ids, (0, length - input_ids.shape[1]), value=self.config.pad_token_id)
            attention_mask = None
        layout = Layout(input_ids, attention_mask, cu_seqlens)
        check_longest(layout.lengths, length, "tokens of a caption")
        index = layout.place
        if self.config.alignment == "right":
            index = index + length - layout.per_token(layout.lengths)
        # Padding before a caption takes any position; it is not attended to.
        tokens = self.token_embedding(input_ids)
        tokens = tokens + self.position_embedding(index.clamp(max=length - 1)).to(tokens.device)
        tokens = self.transformer(tokens, layout)
        layout = layout.to(tokens.device)
        pooled = layout.last(tokens) if self.pooling is None else self.pooling(tokens, layout)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=self.head(pooled))


class NavitSiglipModel(NavitSiglipPreTrainedModel):
    """Both towers; logits = exp(logit_scale) * <image, text> + logit_bias, a sigmoid each."""

    config_class = NavitSiglipConfig
    input_modalities = ("image", "text")

    def __init__(self, config: NavitSiglipConfig):
        super().__init__(config)
        self.image = NavitSiglipVisionModel._from_config(config.vision_config)
        self.text = NavitSiglipTextModel._from_config(config.text_config)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text.set_input_embeddings(value)

    def get_image_features(
        self, pixel_values, spatial_shapes, pixel_attention_mask=None, cu_seqlens=None, **kwargs
    ) -> BaseModelOutputWithPooling:
        return self.image(pixel_values, spatial_shapes, pixel_attention_mask, cu_seqlens, **kwargs)

    def get_text_features(self, input_ids, attention_mask=None, cu_seqlens=None, **kwargs):
        return self.text(input_ids, attention_mask, cu_seqlens, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        spatial_shapes: Tensor,
        pixel_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_cu_seqlens: Tensor | None = None,
        text_cu_seqlens: Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Any,
    ) -> NavitSiglipOutput:
        image = self.image(pixel_values, spatial_shapes, pixel_attention_mask, image_cu_seqlens, **kwargs)
        text = self.text(input_ids, attention_mask, text_cu_seqlens, **kwargs)
        image_embeds = F.normalize(image.pooler_output, dim=-1)
        text_embeds = F.normalize(text.pooler_output, dim=-1).to(image_embeds.device)
        scale, bias = (value.to(image_embeds.device) for value in (self.logit_scale, self.logit_bias))
        logits = scale.exp() * image_embeds @ text_embeds.T + bias
        loss = None
        if return_loss:
            labels = 2 * torch.eye(*logits.shape, device=logits.device) - 1
            loss = -F.logsigmoid(labels * logits).sum() / len(logits)
        return NavitSiglipOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=logits.T,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text,
            vision_model_output=image,
        )
