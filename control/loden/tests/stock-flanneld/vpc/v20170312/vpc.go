// Package v20170312 has the names of a cloud's SDK that flannel's tencent-vpc backend uses, so that flanneld
// links where the Go module proxy does not serve that SDK. No test uses the backend; its calls fail.
package v20170312

import "errors"

var errUnavailable = errors.New("this flanneld was built without the SDK of tencent-vpc")

// Client fails every call.
type Client struct{}

// NewClientWithSecretId returns a client whose calls fail.
func NewClientWithSecretId(_, _, _ string) (*Client, error) {
	return &Client{}, nil
}

// Route is one route of a table.
type Route struct {
	RouteId              *uint64
	DestinationCidrBlock *string
	GatewayType          *string
	GatewayId            *string
	RouteType            *string
	Enabled              *bool
}

// RouteTable is one of a network's tables.
type RouteTable struct {
	RouteTableId *string
	RouteSet     []*Route
}

// Filter selects tables.
type Filter struct {
	Name   *string
	Values []*string
}

// DescribeRouteTablesRequest asks for tables.
type DescribeRouteTablesRequest struct {
	Filters []*Filter
}

// RouteTables is the body of an answer.
type RouteTables struct {
	RouteTableSet []*RouteTable
}

// DescribeRouteTablesResponse has the tables.
type DescribeRouteTablesResponse struct {
	Response *RouteTables
}

// ChangeRoutesRequest names the routes to create or delete in a table.
type ChangeRoutesRequest struct {
	RouteTableId *string
	Routes       []*Route
}

// ChangeRoutesResponse is never returned.
type ChangeRoutesResponse struct{}

func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return &DescribeRouteTablesRequest{}
}

func NewCreateRoutesRequest() *ChangeRoutesRequest {
	return &ChangeRoutesRequest{}
}

func NewDeleteRoutesRequest() *ChangeRoutesRequest {
	return &ChangeRoutesRequest{}
}

func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errUnavailable
}

func (*Client) CreateRoutes(*ChangeRoutesRequest) (*ChangeRoutesResponse, error) {
	return nil, errUnavailable
}

func (*Client) DeleteRoutes(*ChangeRoutesRequest) (*ChangeRoutesResponse, error) {
	return nil, errUnavailable
}
