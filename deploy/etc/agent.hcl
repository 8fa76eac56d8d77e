# SPDX-License-Identifier: Apache-2.0
# The agent's configuration. `assay-agent validate` checks it.
trust_domain      = "example.org"
server_address    = "assay.example.org:8081"
# What the server is known by the first time; `assay bundle show` on the server makes it.
trust_bundle_path = "/etc/assay/bundle.pem"

tpm {}
