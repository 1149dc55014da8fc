resource "google_artifact_registry_repository" "images" {
  repository_id = "himari-${var.environment}"
  location      = var.region
  format        = "DOCKER"
  description   = "Images of the pipeline's steps and of the prediction service"

  vulnerability_scanning_config {
    enablement_config = "INHERITED"
  }

  cleanup_policies {
    id     = "keep-the-newest"
    action = "KEEP"
    most_recent_versions {
      keep_count = 10
    }
  }

  cleanup_policies {
    id     = "delete-the-old"
    action = "DELETE"
    condition {
      tag_state  = "ANY"
      older_than = "7776000s"
    }
  }

  depends_on = [google_project_service.api]
}
