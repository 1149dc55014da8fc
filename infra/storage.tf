# runs/, models/, channels/, checkpoints/, trials/ and data/: the layout of a local store; and images/ and build-source/
# of the image builds.
resource "google_storage_bucket" "store" {
  name                        = "${var.project}-himari-${var.environment}"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = true
  }

  # A deleted or overwritten object can be brought back for a week.
  soft_delete_policy {
    retention_duration_seconds = 604800
  }

  lifecycle_rule {
    condition {
      age            = 30
      matches_prefix = ["checkpoints/", "build-source/"]
    }
    action {
      type = "Delete"
    }
  }

  lifecycle_rule {
    condition {
      num_newer_versions         = 5
      days_since_noncurrent_time = 30
    }
    action {
      type = "Delete"
    }
  }

  lifecycle_rule {
    condition {
      age = 7
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }

  depends_on = [google_project_service.api]

  lifecycle {
    prevent_destroy = true
  }
}

resource "google_storage_bucket" "logs" {
  name                        = "${var.project}-himari-${var.environment}-logs"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = true
  }

  lifecycle_rule {
    condition {
      age                   = 30
      matches_storage_class = ["STANDARD"]
    }
    action {
      type          = "SetStorageClass"
      storage_class = "NEARLINE"
    }
  }

  lifecycle_rule {
    condition {
      age                   = 90
      matches_storage_class = ["NEARLINE"]
    }
    action {
      type          = "SetStorageClass"
      storage_class = "COLDLINE"
    }
  }

  lifecycle_rule {
    condition {
      age = 730
    }
    action {
      type = "Delete"
    }
  }

  depends_on = [google_project_service.api]
}

# What the service and the pipeline say, kept after Cloud Logging's own 30 days.
resource "google_logging_project_sink" "logs" {
  name                   = "himari-${var.environment}"
  destination            = "storage.googleapis.com/${google_storage_bucket.logs.name}"
  filter                 = "(resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${local.service}\") OR resource.type=\"aiplatform.googleapis.com/PipelineJob\" OR resource.type=\"ml_job\""
  unique_writer_identity = true
}

resource "google_storage_bucket_iam_member" "sink_writes_logs" {
  bucket = google_storage_bucket.logs.name
  role   = "roles/storage.objectCreator"
  member = google_logging_project_sink.logs.writer_identity
}
