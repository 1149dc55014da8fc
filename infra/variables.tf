variable "project" {
  description = "Id of the Google Cloud project. It must exist and have billing."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project id has 6 to 30 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "region" {
  description = "Region of everything that has one."
  type        = string
  default     = "us-central1"
}

variable "environment" {
  description = "dev or prod: part of names, so that both fit into one project."
  type        = string

  validation {
    condition     = contains(["dev", "prod"], var.environment)
    error_message = "The environment is dev or prod."
  }
}

variable "github_repository" {
  description = "owner/name of the repository whose workflows may act as the CI account; only its main branch and its releases may."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9-]+/[A-Za-z0-9._-]+$", var.github_repository))
    error_message = "Write the repository as owner/name."
  }
}

variable "callers" {
  description = "Who may ask the service for predictions, as IAM members: serviceAccount:trader@project.iam.gserviceaccount.com."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for member in var.callers : startswith(member, "serviceAccount:")])
    error_message = "Callers are service accounts. For a service that anybody may call there is allow_unauthenticated."
  }
}

variable "allow_unauthenticated" {
  description = "Let anybody on the internet reach the service, which then checks callers itself. While a release serves that was made without allow_unauthenticated in config/cloud.yaml, nobody checks them: release with it first."
  type        = bool
  default     = false
}

variable "ingress" {
  description = "Where calls may come from: INGRESS_TRAFFIC_ALL, _INTERNAL_ONLY or _INTERNAL_LOAD_BALANCER."
  type        = string
  default     = "INGRESS_TRAFFIC_ALL"

  validation {
    condition = contains([
      "INGRESS_TRAFFIC_ALL", "INGRESS_TRAFFIC_INTERNAL_ONLY", "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER",
    ], var.ingress)
    error_message = "Ingress is one of Cloud Run's three words."
  }
}

variable "billing_account" {
  description = "Id of the billing account (XXXXXX-XXXXXX-XXXXXX) that the budget is on."
  type        = string

  validation {
    condition     = can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.billing_account))
    error_message = "A billing account's id has the form XXXXXX-XXXXXX-XXXXXX."
  }
}

variable "budget_cad" {
  description = "Budget of a month in CAD; alerts at 50, 80 and 100 per cent. The billing account must be in CAD."
  type        = number

  validation {
    condition     = var.budget_cad >= 1 && floor(var.budget_cad) == var.budget_cad
    error_message = "The budget is a whole number of dollars of at least 1."
  }
}

variable "alert_email" {
  description = "Who hears of the budget."
  type        = string
}

variable "max_instances" {
  description = "Instances at most; releases read it from config/cloud.yaml."
  type        = number
  default     = 10
}
