"""Who hands out grants, and the credentials of one upload.

App servers and IMS are imported where one is named: few uploads have to do with them.
"""

from uploader.credentials.caller import AccessKeys
from uploader.credentials.contract import (
    GrantProvider,
    GrantSource,
    Network,
    NewVideo,
    ReferenceUsed,
)
from uploader.credentials.live import DOCUMENTED_LIFE_S, LiveGrant, PlainSigner, life_s
from uploader.credentials.vod import VodProvider

__all__ = [
    "DOCUMENTED_LIFE_S",
    "AccessKeys",
    "GrantProvider",
    "GrantSource",
    "LiveGrant",
    "Network",
    "NewVideo",
    "PlainSigner",
    "ReferenceUsed",
    "VodProvider",
    "life_s",
]
