# terraform apply -var-file=environments/dev.tfvars -var project=… -var billing_account=… -var github_repository=… -var alert_email=…
environment   = "dev"
budget_cad    = 50
max_instances = 2
