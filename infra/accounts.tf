# One account for each who acts, with what it needs and no more.

resource "google_service_account" "pipeline" {
  account_id   = "himari-${var.environment}-pipeline"
  display_name = "Runs the steps of the training pipeline"
}

resource "google_service_account" "serving" {
  account_id   = "himari-${var.environment}-serving"
  display_name = "Runs the prediction service"
}

resource "google_service_account" "scheduler" {
  account_id   = "himari-${var.environment}-scheduler"
  display_name = "Submits and schedules pipeline runs"
}

resource "google_service_account" "ci" {
  account_id   = "himari-${var.environment}-ci"
  display_name = "GitHub Actions: builds images, submits releases"
}

locals {
  pipeline  = google_service_account.pipeline.member
  serving   = google_service_account.serving.member
  scheduler = google_service_account.scheduler.member
  ci        = google_service_account.ci.member

  project_roles = {
    "pipeline aiplatform.user"        = { role = "roles/aiplatform.user", member = local.pipeline }
    "pipeline logging.logWriter"      = { role = "roles/logging.logWriter", member = local.pipeline }
    "pipeline monitoring.viewer"      = { role = "roles/monitoring.viewer", member = local.pipeline }
    "scheduler aiplatform.user"       = { role = "roles/aiplatform.user", member = local.scheduler }
    "scheduler serviceUsageViewer"    = { role = "roles/serviceusage.serviceUsageViewer", member = local.scheduler }
    "ci aiplatform.user"              = { role = "roles/aiplatform.user", member = local.ci }
    "ci cloudbuild.builds.editor"     = { role = "roles/cloudbuild.builds.editor", member = local.ci }
    "ci serviceUsageViewer"           = { role = "roles/serviceusage.serviceUsageViewer", member = local.ci }
    "ci serviceUsageConsumer"         = { role = "roles/serviceusage.serviceUsageConsumer", member = local.ci }
    "ci iam.securityReviewer"         = { role = "roles/iam.securityReviewer", member = local.ci }
    "scheduler iam.securityReviewer"  = { role = "roles/iam.securityReviewer", member = local.scheduler }
    "ci monitoring.viewer"            = { role = "roles/monitoring.viewer", member = local.ci }
    "ci logging.logWriter"            = { role = "roles/logging.logWriter", member = local.ci }
    "ci ondemandscanning.admin"       = { role = "roles/ondemandscanning.admin", member = local.ci }
    "ci containeranalysis.occurrence" = { role = "roles/containeranalysis.occurrences.viewer", member = local.ci }
  }

  store_roles = {
    "pipeline writes"  = { role = "roles/storage.objectUser", member = local.pipeline }
    "scheduler writes" = { role = "roles/storage.objectUser", member = local.scheduler }
    "ci writes"        = { role = "roles/storage.objectUser", member = local.ci }
    # Whether there is a bucket is asked before a run is submitted.
    "scheduler sees" = { role = "roles/storage.legacyBucketReader", member = local.scheduler }
    "ci sees"        = { role = "roles/storage.legacyBucketReader", member = local.ci }
  }

  # Who may start something that acts as another account.
  acts_as = {
    "scheduler as pipeline" = { account = google_service_account.pipeline.name, member = local.scheduler }
    "ci as pipeline"        = { account = google_service_account.pipeline.name, member = local.ci }
    "pipeline as itself"    = { account = google_service_account.pipeline.name, member = local.pipeline }
    "pipeline as serving"   = { account = google_service_account.serving.name, member = local.pipeline }
    # Cloud Build runs as the account that asks for the build.
    "ci as itself"  = { account = google_service_account.ci.name, member = local.ci }
    "ci as serving" = { account = google_service_account.serving.name, member = local.ci }
  }
}

resource "google_project_iam_member" "grant" {
  for_each = local.project_roles

  project = var.project
  role    = each.value.role
  member  = each.value.member
}

resource "google_storage_bucket_iam_member" "grant" {
  for_each = local.store_roles

  bucket = google_storage_bucket.store.name
  role   = each.value.role
  member = each.value.member
}

# The service reads models and channels, and nothing else of the store.
resource "google_storage_bucket_iam_member" "serving_reads_models" {
  bucket = google_storage_bucket.store.name
  role   = "roles/storage.objectViewer"
  member = local.serving

  condition {
    title      = "models-and-channels"
    expression = "resource.name.startsWith('projects/_/buckets/${google_storage_bucket.store.name}/objects/models/') || resource.name.startsWith('projects/_/buckets/${google_storage_bucket.store.name}/objects/channels/')"
  }
}

resource "google_service_account_iam_member" "acts_as" {
  for_each = local.acts_as

  service_account_id = each.value.account
  role               = "roles/iam.serviceAccountUser"
  member             = each.value.member
}

# A rollback from a workflow asks the service with a token of the CI account's own.
resource "google_service_account_iam_member" "ci_own_tokens" {
  service_account_id = google_service_account.ci.name
  role               = "roles/iam.serviceAccountOpenIdTokenCreator"
  member             = local.ci
}

resource "google_artifact_registry_repository_iam_member" "reader" {
  for_each = {
    pipeline  = local.pipeline
    serving   = local.serving
    scheduler = local.scheduler
  }

  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = each.value
}

resource "google_artifact_registry_repository_iam_member" "writer" {
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.writer"
  member     = local.ci
}
