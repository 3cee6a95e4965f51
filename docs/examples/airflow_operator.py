"""An Airflow operator that uploads. Tasks are retried by Airflow, uploads resumed by vodup.

Not deferrable: the triggerer is for waiting, not for moving gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowFailException

from uploader import LeaseLost, UploadLocked, VideoMeta, VodProvider, VodupError, upload_sync


class VodUploadOperator(BaseOperator):
    """Uploads `path`; its XCom is the VideoId.

    Args:
        path: on a volume that all workers have, or an http(s) URL.
        state: a PostgreSQL that all workers reach; a task may be retried anywhere.
        key: of the upload; the default names the task and the run, so that a retry goes on
            and another run makes another video.
        settings: what else `upload_sync` is told.
    """

    template_fields: Sequence[str] = ("path", "title", "key", "state")

    def __init__(
        self,
        *,
        path: str,
        state: str | None = None,
        title: str | None = None,
        key: str = "{{ dag.dag_id }}/{{ task.task_id }}/{{ ti.map_index }}/{{ run_id }}",
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.state = state
        self.title = title
        self.key = key
        self.settings = settings or {}

    def execute(self, context: Context) -> str:
        """Upload, or go on. A failure that does not pass is not retried."""
        try:
            result = upload_sync(
                self.path,
                provider=VodProvider.from_env(),
                state=self.state,
                key=self.key,
                meta=VideoMeta(title=self.title),
                **self.settings,
            )
        except (UploadLocked, LeaseLost):
            raise  # somebody else is at it: the retry finds the receipt
        except VodupError as error:
            if error.is_temporary:
                raise
            raise AirflowFailException(str(error)) from error
        return result.video_id
