package assay.issue_test

import data.assay.issue

machine := {"node": {"quote_age": 20}, "entry": {"spiffe_id": "spiffe://example.org/prod/pay"}}

test_production_is_short if {
	issue.result.ttl == 300 with input as machine
	issue.result.allow with input as machine
}

test_old_quote if not issue.result.allow with input as object.union(machine, {"node": {"quote_age": 7200}})

test_no_quote if not issue.result.allow with input as {"node": {}, "entry": machine.entry}

test_ssh if {
	facts := {"executable": {"path": "/opt/pay"}, "lineage": [{"path": "/usr/sbin/sshd"}]}
	issue.result.deny == {"started by /usr/sbin/sshd, which may not start services"} with input as object.union(machine, {"facts": facts})
}
