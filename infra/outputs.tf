output "cloud_yaml" {
  description = "What config/cloud.yaml needs: terraform output -raw cloud_yaml > config/cloud.yaml"
  value = yamlencode({
    project                  = var.project
    region                   = var.region
    store                    = "gs://${google_storage_bucket.store.name}"
    experiment               = "himari-${var.environment}"
    pipeline_service_account = google_service_account.pipeline.email
    serving_service_account  = google_service_account.serving.email
    service                  = local.service
    max_instances            = var.max_instances
    allow_unauthenticated    = var.allow_unauthenticated
    id_token_emails          = join(",", [for member in concat(var.callers, [local.pipeline, local.ci]) : trimprefix(member, "serviceAccount:")])
  })
}

output "images" {
  description = "Where images go"
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "service_url" {
  description = "Address of the prediction service"
  value       = google_cloud_run_v2_service.predictions.uri
}

output "github" {
  description = "Variables of the GitHub environment"
  value = {
    WORKLOAD_IDENTITY_PROVIDER = google_iam_workload_identity_pool_provider.github.name
    CI_SERVICE_ACCOUNT         = google_service_account.ci.email
  }
}
