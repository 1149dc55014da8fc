terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
  }

  # terraform init -backend-config="bucket=<project>-terraform" -backend-config="prefix=himari/<environment>"
  backend "gcs" {}
}

provider "google" {
  project = var.project
  region  = var.region
  # The budget's API asks for a project to charge its own calls to.
  user_project_override = true
  billing_project       = var.project

  default_labels = local.labels
}

locals {
  labels = {
    system      = "himari"
    environment = var.environment
    # Not managed-by: releases say that of the service, and each would undo the other's.
    made-by = "terraform"
  }
}
