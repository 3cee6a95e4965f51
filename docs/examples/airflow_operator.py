"""An Airflow operator that uploads a video. Airflow retries the task, vodup resumes the upload.

It is not deferrable: the triggerer is for waiting, not for moving gigabytes.
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
        path: a file on a volume that all workers mount, or an http(s) URL.
        state: a PostgreSQL that all workers reach; a task may be retried on any of them.
        key: the name of the upload. The default contains the task and the run, so that a retry
            resumes and another run creates another video.
        settings: further arguments of `upload_sync`.
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
        """Upload or resume. Only temporary failures are retried."""
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
            raise  # another process uploads: the retry finds its result
        except VodupError as error:
            if error.is_temporary:
                raise
            raise AirflowFailException(str(error)) from error
        return result.video_id
