//! Commands for address handles, after the kernel's `ib_uverbs_create_ah` and `efa_create_ah`.

use crate::abi::efa::CreateAhResp;
use crate::abi::ioctl::invoke_write;
use crate::abi::verbs::CreateAh;
use crate::call::Call;
use crate::context::{Context, Object};
use crate::errno::{Errno, Outcome, refuse};
use crate::kind::Kind;
use bytemuck::Zeroable;
use efa_types::Gid;

pub(super) fn create_ah(context: &mut Context, call: &Call<'_>) -> Outcome<()> {
    let request: CreateAh = call.structure(invoke_write::CORE_IN)?;
    if request.port_num != 1 {
        return refuse(Errno::INVAL, format!("port {}: the device has port 1 alone", request.port_num));
    }
    let pd = context.pd(request.pd_handle.into())?;
    let charges = context.charge(Kind::AddressHandle, context.device.config.max_ah, 0)?;
    let number = context.device.call(|device| device.create_ah(pd, Gid(request.dgid)))?;
    context.keep(Object::Ah { pd, number }, charges, |handle| {
        call.put(invoke_write::CORE_OUT, &handle)?;
        call.put_driver(&CreateAhResp { efa_address_handle: number, ..CreateAhResp::zeroed() })
    })
}
