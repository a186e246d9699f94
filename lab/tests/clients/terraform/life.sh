#!/bin/sh
# Applies main.tf, finds nothing to change, lets a volume grow, destroys all. `tofu` or `terraform`, and the provider
# `terraform-provider-hcloud`, are in PATH: no registry is asked.
set -eu
tool=$(command -v tofu || command -v terraform)
provider=$(dirname "$(command -v terraform-provider-hcloud)")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cp main.tf "$dir"
cat >"$dir/rc" <<END
provider_installation {
  dev_overrides { "hetznercloud/hcloud" = "$provider" }
}
END
export TF_CLI_CONFIG_FILE="$dir/rc" TF_IN_AUTOMATION=1 CHECKPOINT_DISABLE=1
cd "$dir"
"$tool" apply -auto-approve -input=false -no-color
# 2 would be: there are changes.
"$tool" plan -detailed-exitcode -input=false -no-color
"$tool" apply -auto-approve -input=false -no-color -var size=12
"$tool" plan -detailed-exitcode -input=false -no-color -var size=12
"$tool" destroy -auto-approve -input=false -no-color
echo "life is complete with $("$tool" version | head -n 1)"
