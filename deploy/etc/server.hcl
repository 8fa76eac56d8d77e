# SPDX-License-Identifier: Apache-2.0
# The server's configuration. `assay-server validate` checks it.
trust_domain = "example.org"
bind_port    = 8081

# Nodes prove themselves by their TPM. One of these must vouch for it (docs/machines.md):
tpm {
  # its maker: PEM with the makers' CAs
  # ek_ca_path = "/etc/assay/tpm-makers.pem"
  # you: `assay tpm inventory add HASH`, where HASH is what `assay tpm ek` printed on the node
  # nobody yet: it waits for `assay node approve`
  pending = true
}
