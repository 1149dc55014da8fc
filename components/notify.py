"""Exit handler: tell how the run ended, whatever happened."""

from kfp import dsl

from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def notify(status: dsl.PipelineTaskFinalStatus, run_id: str, store: str) -> None:
    """Write runs/<run id>/notification.json and one structured log line.

    Args:
        run_id: This run.
        store: Folder or gs:// URI that holds runs/.
    """
    from layer3.notification import send

    send(run_id, status.state, status.error_message, store=store)
