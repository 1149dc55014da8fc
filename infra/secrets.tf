# The API keys of the service, a file of lines "name:key". Its content is put there by hand:
# gcloud secrets versions add himari-<environment>-api-keys --data-file=keys.txt
# Releases mount it where config/cloud.yaml names it (api_keys_secret) and IAM does not check callers.
resource "google_secret_manager_secret" "api_keys" {
  secret_id = "himari-${var.environment}-api-keys"

  replication {
    auto {}
  }

  depends_on = [google_project_service.api]
}

resource "google_secret_manager_secret_iam_member" "serving_reads_keys" {
  secret_id = google_secret_manager_secret.api_keys.secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = local.serving
}
