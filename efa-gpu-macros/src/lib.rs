//! The attribute [`macro@kernel`], which `efa-gpu-device` re-exports.
//!
//! Unsafe code: `lib.rs` (the attribute `no_mangle` of a kernel's entry).

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{FnArg, ItemFn, ReturnType, parse_macro_input};

/// Makes a function a kernel: an entry point for a GPU, under its own name. On the host it stays a function, for tests
/// to call.
///
/// ```
/// use efa_gpu_device::{kernel, thread};
///
/// /// Numbers the threads of a grid.
/// ///
/// /// # Safety
/// /// `numbers` has room for one of each thread.
/// #[kernel]
/// pub unsafe fn number(numbers: *mut u32) {
///     let index = thread::index_1d();
///     // SAFETY: the caller's promise.
///     unsafe { *numbers.add(index as usize) = index };
/// }
/// ```
///
/// A kernel is `unsafe`, since its launcher passes addresses. It returns nothing, and is neither generic nor async.
#[proc_macro_attribute]
pub fn kernel(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let arguments = Tokens::from(arguments);
    let function = parse_macro_input!(item as ItemFn);
    expand(&arguments, function).unwrap_or_else(syn::Error::into_compile_error).into()
}

fn expand(arguments: &Tokens, mut function: ItemFn) -> syn::Result<Tokens> {
    let refuse = |tokens: &dyn Spanned, why: &str| Err(syn::Error::new(tokens.span(), why));
    if !arguments.is_empty() {
        return refuse(&arguments, "`#[kernel]` takes no arguments");
    }
    let signature = &function.sig;
    if signature.unsafety.is_none() {
        return refuse(&signature.fn_token, "a kernel is an `unsafe fn`: whoever launches it passes it addresses");
    }
    if !signature.generics.params.is_empty() {
        return refuse(&signature.generics, "a kernel cannot be generic: the GPU finds it by its name");
    }
    if let Some(token) = &signature.asyncness {
        return refuse(token, "a kernel cannot be async");
    }
    if let Some(abi) = &signature.abi {
        return refuse(abi, "`#[kernel]` says what the ABI is");
    }
    if let ReturnType::Type(_, returned) = &signature.output {
        return refuse(returned, "a kernel returns nothing: it stores its results");
    }
    if let Some(receiver @ FnArg::Receiver(_)) = signature.inputs.first() {
        return refuse(receiver, "a kernel is no method");
    }
    let no_mangle = quote_spanned!(signature.ident.span()=> #[unsafe(no_mangle)]);
    let abi = syn::parse_quote_spanned!(signature.fn_token.span=> extern "ptx-kernel");
    let host = function.clone();
    function.sig.abi = Some(abi);
    Ok(quote! {
        #[cfg(target_arch = "nvptx64")]
        #no_mangle
        #function
        #[cfg(not(target_arch = "nvptx64"))]
        #host
    })
}
