"""Log-mel -> tokens: the MAST and AST encoders; importing it registers the models with timm."""

from typing import TYPE_CHECKING, Any, Literal, overload

from timm import list_models as _list_timm_models
from torch import nn

from ssmast.model.ast import AST
from ssmast.model.backbone import Backbone
from ssmast.model.describe import count_macs, describe
from ssmast.model.family import (
    IMAGENET,
    ast_base,
    ast_nano,
    ast_small,
    ast_tiny,
    mast_base,
    mast_large,
    mast_micro,
    mast_nano,
    mast_small,
    mast_tiny,
    ssast_base,
    ssast_frame_base,
    ssast_frame_nano,
    ssast_nano,
)
from ssmast.model.mast import MAST
from ssmast.model.patch import Grid, PatchDrop, Tokens, draw_patch_drop, patch_drop_draws
from ssmast.model.pool import pool_tokens, pooled_dim
from ssmast.model.pretrained import (
    LoadReport,
    ast_numbers,
    is_ast_state_dict,
    is_published_ast,
    is_timm_state_dict,
    load_ast_file,
    load_ast_state_dict,
    load_mast_state_dict,
    load_timm_state_dict,
    mast_name,
    read_tensors,
)

if TYPE_CHECKING:  # timm's function, with the types of our models

    @overload
    def create_model(
        model_name: str, pretrained: bool = ..., *, features_only: Literal[True], **kwargs: Any
    ) -> nn.Module: ...
    @overload
    def create_model(
        model_name: str,
        pretrained: bool = ...,
        *,
        features_only: Literal[False] = ...,
        **kwargs: Any,
    ) -> Backbone: ...
    def create_model(model_name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        """A model by its name, as `timm.create_model` makes it."""
        ...
else:
    from timm import create_model


def list_models() -> list[str]:
    """Names of the models of this package, which `create_model` knows beside timm's."""
    return [
        *_list_timm_models("mast_*", module="family"),
        *_list_timm_models("ast_*", module="family"),
        *_list_timm_models("ssast_*", module="family"),
    ]


__all__ = [
    "AST",
    "IMAGENET",
    "MAST",
    "Backbone",
    "Grid",
    "LoadReport",
    "PatchDrop",
    "Tokens",
    "ast_base",
    "ast_nano",
    "ast_numbers",
    "ast_small",
    "ast_tiny",
    "count_macs",
    "create_model",
    "describe",
    "draw_patch_drop",
    "is_ast_state_dict",
    "is_published_ast",
    "is_timm_state_dict",
    "list_models",
    "load_ast_file",
    "load_ast_state_dict",
    "load_mast_state_dict",
    "load_timm_state_dict",
    "mast_base",
    "mast_large",
    "mast_micro",
    "mast_name",
    "mast_nano",
    "mast_small",
    "mast_tiny",
    "patch_drop_draws",
    "pool_tokens",
    "pooled_dim",
    "read_tensors",
    "ssast_base",
    "ssast_frame_base",
    "ssast_frame_nano",
    "ssast_nano",
]
