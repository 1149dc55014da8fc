resource "google_monitoring_notification_channel" "budget" {
  display_name = "Budget of himari-${var.environment}"
  type         = "email"

  labels = {
    email_address = var.alert_email
  }

  depends_on = [google_project_service.api]
}

data "google_project" "this" {}

resource "google_billing_budget" "month" {
  billing_account = var.billing_account
  display_name    = "himari-${var.environment}"

  budget_filter {
    projects = ["projects/${data.google_project.this.number}"]
  }

  amount {
    specified_amount {
      currency_code = "CAD"
      units         = tostring(var.budget_cad)
    }
  }

  threshold_rules {
    threshold_percent = 0.5
  }

  threshold_rules {
    threshold_percent = 0.8
  }

  threshold_rules {
    threshold_percent = 1.0
  }

  # Before the money is gone: what the month will come to.
  threshold_rules {
    threshold_percent = 1.0
    spend_basis       = "FORECASTED_SPEND"
  }

  all_updates_rule {
    monitoring_notification_channels = [google_monitoring_notification_channel.budget.id]
  }

  depends_on = [google_project_service.api]
}
