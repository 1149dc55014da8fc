locals {
  service = "himari-${var.environment}"
}

# The shell of the service. What runs in it, its traffic and its labels belong to the releases (serving/release.py).
resource "google_cloud_run_v2_service" "predictions" {
  name                = local.service
  location            = var.region
  ingress             = var.ingress
  deletion_protection = true

  template {
    service_account                  = google_service_account.serving.email
    timeout                          = "10s"
    max_instance_request_concurrency = 80

    scaling {
      max_instance_count = var.max_instances
    }

    containers {
      # Google's own hello: until the first release there is no image of ours to start.
      image = "us-docker.pkg.dev/cloudrun/container/hello"

      resources {
        limits = {
          cpu    = "1"
          memory = "1Gi"
        }
        cpu_idle = true
      }
    }
  }

  lifecycle {
    ignore_changes = [template, traffic, labels, annotations, client, client_version, scaling, invoker_iam_disabled]
  }

  depends_on = [google_project_service.api]
}

resource "google_cloud_run_v2_service_iam_member" "caller" {
  for_each = toset(concat(var.callers, [local.pipeline, local.ci]))

  name     = google_cloud_run_v2_service.predictions.name
  location = google_cloud_run_v2_service.predictions.location
  role     = "roles/run.invoker"
  member   = each.value
}

resource "google_cloud_run_v2_service_iam_member" "anybody" {
  count = var.allow_unauthenticated ? 1 : 0

  name     = google_cloud_run_v2_service.predictions.name
  location = google_cloud_run_v2_service.predictions.location
  role     = "roles/run.invoker"
  member   = "allUsers"
}

# Releases: of this one service.
resource "google_cloud_run_v2_service_iam_member" "releaser" {
  for_each = {
    pipeline = local.pipeline
    ci       = local.ci
  }

  name     = google_cloud_run_v2_service.predictions.name
  location = google_cloud_run_v2_service.predictions.location
  role     = "roles/run.developer"
  member   = each.value
}
