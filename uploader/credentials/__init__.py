"""Who hands out grants, and the credentials of one upload."""

from uploader.credentials.app_server import CallbackProvider, CommandProvider, UrlProvider
from uploader.credentials.caller import AccessKeys
from uploader.credentials.contract import (
    GrantProvider,
    GrantSource,
    Network,
    NewVideo,
    ReferenceUsed,
)
from uploader.credentials.ims import ImsProvider
from uploader.credentials.live import DOCUMENTED_LIFE_S, LiveGrant, PlainSigner, life_s
from uploader.credentials.vod import VodProvider

__all__ = [
    "DOCUMENTED_LIFE_S",
    "AccessKeys",
    "CallbackProvider",
    "CommandProvider",
    "GrantProvider",
    "GrantSource",
    "ImsProvider",
    "LiveGrant",
    "Network",
    "NewVideo",
    "PlainSigner",
    "ReferenceUsed",
    "UrlProvider",
    "VodProvider",
    "life_s",
]
