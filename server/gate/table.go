// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"maps"
	"slices"
)

// access is a set of kinds of callers.
type access uint8

const (
	anyone     access = 1 << iota
	local             // came through the Unix socket
	admin             // holds an SVID of an entry with admin
	downstream        // holds an SVID of an entry with downstream
	agent             // holds the active SVID of an admitted node
)

const operators = local | admin

// permissions is who may call what. A method that is not here can not be called.
var permissions = map[string]access{
	"/spire.api.server.agent.v1.Agent/AttestAgent":     anyone,
	"/spire.api.server.agent.v1.Agent/RenewAgent":      agent,
	"/spire.api.server.agent.v1.Agent/PostStatus":      agent,
	"/spire.api.server.agent.v1.Agent/CountAgents":     operators,
	"/spire.api.server.agent.v1.Agent/ListAgents":      operators,
	"/spire.api.server.agent.v1.Agent/GetAgent":        operators,
	"/spire.api.server.agent.v1.Agent/BanAgent":        operators,
	"/spire.api.server.agent.v1.Agent/DeleteAgent":     operators,
	"/spire.api.server.agent.v1.Agent/CreateJoinToken": operators,

	"/spire.api.server.entry.v1.Entry/CountEntries":          operators,
	"/spire.api.server.entry.v1.Entry/ListEntries":           operators,
	"/spire.api.server.entry.v1.Entry/GetEntry":              operators,
	"/spire.api.server.entry.v1.Entry/BatchCreateEntry":      operators,
	"/spire.api.server.entry.v1.Entry/BatchUpdateEntry":      operators,
	"/spire.api.server.entry.v1.Entry/BatchDeleteEntry":      operators,
	"/spire.api.server.entry.v1.Entry/GetAuthorizedEntries":  agent,
	"/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries": agent,

	"/spire.api.server.svid.v1.SVID/MintX509SVID":        operators,
	"/spire.api.server.svid.v1.SVID/MintJWTSVID":         operators,
	"/spire.api.server.svid.v1.SVID/MintWITSVID":         operators,
	"/spire.api.server.svid.v1.SVID/BatchNewX509SVID":    agent,
	"/spire.api.server.svid.v1.SVID/NewJWTSVID":          agent,
	"/spire.api.server.svid.v1.SVID/BatchNewWITSVID":     agent,
	"/spire.api.server.svid.v1.SVID/NewDownstreamX509CA": downstream,

	"/spire.api.server.bundle.v1.Bundle/GetBundle":                  anyone,
	"/spire.api.server.bundle.v1.Bundle/CountBundles":               operators,
	"/spire.api.server.bundle.v1.Bundle/AppendBundle":               operators,
	"/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority":        downstream,
	"/spire.api.server.bundle.v1.Bundle/PublishWITAuthority":        downstream,
	"/spire.api.server.bundle.v1.Bundle/ListFederatedBundles":       operators,
	"/spire.api.server.bundle.v1.Bundle/GetFederatedBundle":         operators | agent,
	"/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle": operators,
	"/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle": operators,
	"/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle":    operators,
	"/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle": operators,

	"/assay.node.v1.Node/Watch":        agent,
	"/assay.node.v1.Node/SignX509SVID": agent,
	"/assay.node.v1.Node/SignJWTSVID":  agent,
	"/assay.node.v1.Node/SignWITSVID":  agent,
	"/assay.node.v1.Node/Requote":      agent,

	"/assay.nodeadmin.v1.NodeAdmin/ListNodes":       operators,
	"/assay.nodeadmin.v1.NodeAdmin/GetNode":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Approve":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Suspend":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Readmit":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Ban":             operators,
	"/assay.nodeadmin.v1.NodeAdmin/ListInventory":   operators,
	"/assay.nodeadmin.v1.NodeAdmin/AddInventory":    operators,
	"/assay.nodeadmin.v1.NodeAdmin/RemoveInventory": operators,
	"/assay.nodeadmin.v1.NodeAdmin/ListRoots":       operators,
	"/assay.nodeadmin.v1.NodeAdmin/CheckNodes":      operators,

	"/spire.api.server.debug.v1.Debug/GetInfo": local,
	"/grpc.health.v1.Health/Check":             local,
	"/grpc.health.v1.Health/List":              local,
	"/grpc.health.v1.Health/Watch":             local,
}

const (
	noJWT        = "JWT-SVIDs are not issued by this version of the server; use X.509-SVIDs"
	noWIT        = "WIT-SVIDs are not issued by this version of the server; use X.509-SVIDs"
	noFederation = "federation is not supported by this version of the server"
	noNesting    = "nested servers are not supported by this version of the server"
	noAppend     = "authorities can not be added by hand in this version of the server; its CA publishes its own"
)

// unsupported are the methods of SPIRE's services that answer Unimplemented, and why. SPIRE's
// agents take that code as final; most others they repeat for half a minute.
var unsupported = map[string]string{
	"/spire.api.server.svid.v1.SVID/MintJWTSVID":         noJWT,
	"/spire.api.server.svid.v1.SVID/NewJWTSVID":          noJWT,
	"/spire.api.server.svid.v1.SVID/MintWITSVID":         noWIT,
	"/spire.api.server.svid.v1.SVID/BatchNewWITSVID":     noWIT,
	"/spire.api.server.svid.v1.SVID/NewDownstreamX509CA": noNesting,

	"/assay.node.v1.Node/SignJWTSVID": noJWT,
	"/assay.node.v1.Node/SignWITSVID": noWIT,

	"/spire.api.server.bundle.v1.Bundle/AppendBundle":               noAppend,
	"/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority":        noNesting,
	"/spire.api.server.bundle.v1.Bundle/PublishWITAuthority":        noNesting,
	"/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle": noFederation,
	"/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle": noFederation,
	"/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle":    noFederation,
	"/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle": noFederation,
}

// Methods are those that somebody may call, in order.
func Methods() []string { return slices.Sorted(maps.Keys(permissions)) }
