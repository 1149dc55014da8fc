# terraform apply -var-file=environments/prod.tfvars -var project=… -var billing_account=… -var github_repository=… -var alert_email=…
environment   = "prod"
budget_cad    = 133
max_instances = 10
