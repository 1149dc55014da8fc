"""Exit handler: tell how the run ended, whatever happened."""

from kfp import dsl

from components.image import BASE_IMAGE, IMAGE


@dsl.component(base_image=BASE_IMAGE, target_image=IMAGE)
def notify(status: dsl.PipelineTaskFinalStatus, run_id: str, store: str, vertex: str = "") -> None:
    """Write runs/<run id>/notification.json and one structured log line; put the run into its experiment.

    A run that a schedule started belongs to no experiment until a step of its own says so, and this one runs
    even where another has failed.

    Args:
        run_id: This run.
        store: Folder or gs:// URI that holds runs/.
        vertex: Where Vertex AI records, as JSON; nothing is recorded where it is empty.
    """
    from layer3.notification import send

    send(run_id, status.state, status.error_message, store=store)
    if vertex:
        from serving.experiments import link_run
        from serving.vertex import place_of

        link_run(place_of(vertex), run_id)
